"""Summaries of the whole validation split of docstrings: litlab against transformers' generate in Lightning's autocast."""

import time
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from benchmarks.race import race, report, say, sooner
from litlab.data.summarization import Summarization
from litlab.models.scores import SummarizationScores
from litlab.models.t5_summarizer import T5Summarizer
from litlab.precision import Bf16Mixed

ROUNDS, STEPS = 3, 150
SETTINGS: dict[str, Any] = {"d_model": 256, "d_ff": 1024, "num_layers": 3, "num_heads": 4, "dropout": 0.0}


def trained(data: Summarization) -> T5Summarizer:
    """A model that has learnt to end its summaries: a random one writes to the limit, whoever decodes."""
    torch.manual_seed(0)
    module = T5Summarizer(vocab_size=data.vocab_size, max_new_tokens=32, no_repeat_ngram_size=3, **SETTINGS)
    module.configure_model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    for _, batch in zip(range(STEPS), data.train_dataloader(), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval()


def main() -> None:
    """Race, report seconds, and compare what was written."""
    data = Summarization(tokenizer_size=4096, max_length=128, max_summary_length=32, batch_size=16)
    data.prepare_data()
    module = trained(data)
    written: dict[str, dict[int, tuple[str, str]]] = {"litlab": {}, "generate": {}}

    def all_of(name: str, context: Any, generate: Any) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in data.val_dataloader():
                with context():
                    texts = data._decode(generate(batch))
                written[name] |= dict(zip(batch["id"].tolist(), zip(texts, batch["target"], strict=True), strict=True))
        return time.perf_counter() - began

    def plain(batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return module.network.generate(**inputs, **module.generation)[:, 1:]

    ours, theirs = Bf16Mixed("cpu"), MixedPrecision("bf16-mixed", "cpu")
    medians = race(
        {
            "litlab": lambda: all_of("litlab", ours.forward_context, module.generate),
            "generate": lambda: all_of("generate", theirs.forward_context, plain),
        },
        ROUNDS,
    )
    same = sum(written["litlab"][number] == text for number, text in written["generate"].items()) / len(
        written["generate"]
    )
    rouge = {}
    for name, pairs in written.items():
        scores = SummarizationScores("")
        nothing = torch.zeros(len(pairs))
        scores.update(*map(list, zip(*pairs.values(), strict=True)), nothing, nothing)
        rouge[name] = float(scores.compute()["rouge1"])
    note = f"generation: {same:.2%} of {len(written['generate']):,} summaries identical; ROUGE-1 {rouge['litlab']:.4f} and {rouge['generate']:.4f}"
    say(note)
    what = "T5 generation of the validation split against model.generate in Lightning's autocast"
    report([sooner(what, medians, "litlab", "generate", "s", 2, 4)], [note])


if __name__ == "__main__":
    main()
