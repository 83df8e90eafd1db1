"""Loading and collating batches of 32 texts: litlab against datasets, DataCollatorWithPadding and DataLoader."""

import time

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from benchmarks.race import faster, race, report
from litlab.sources import pretrained
from project.data.text_classification import TextClassification

BATCH, ROUNDS = 32, 5


def main() -> None:
    """Run the race and report batches per second."""
    # the peer reads the tokens that litlab has in its cache
    data = TextClassification(max_length=128, batch_size=BATCH)
    data.prepare_data()
    tokenizer = pretrained.load_tokenizer("all-MiniLM-L6-v2")
    split = data.splits["train"]
    texts, targets = split.ragged("tokens"), split.array("target")
    rows = [
        texts.values[start : start + length].tolist() for start, length in zip(texts.starts, texts.lengths, strict=True)
    ]
    columns = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "label": targets.tolist()}
    dataset = Dataset.from_dict(columns)
    collator = DataCollatorWithPadding(tokenizer)

    def litlab() -> float:
        began = time.perf_counter()
        loader = data.train_dataloader()
        return sum(1 for _ in loader) / (time.perf_counter() - began)

    def peer() -> float:
        loader = DataLoader(dataset, BATCH, shuffle=True, collate_fn=collator)
        began = time.perf_counter()
        return sum(1 for _ in loader) / (time.perf_counter() - began)

    medians = race({"litlab": litlab, "peer": peer}, ROUNDS)
    what = "loading and collating texts against datasets, DataCollatorWithPadding and DataLoader"
    report([faster(what, medians, "litlab", "peer", "batches/s", 30, 70)])


if __name__ == "__main__":
    main()
