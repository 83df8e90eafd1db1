import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from litlab.models.t5_decoding import greedy

LIMIT = 24


def network(feed_forward: str = "gated-gelu", **settings: object) -> T5ForConditionalGeneration:
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, feed_forward_proj=feed_forward, decoder_start_token_id=0, **settings)
    made = T5ForConditionalGeneration(config).eval()
    for parameter in made.parameters():  # so that one token does not follow all others
        parameter.data.mul_(3)
    return made


def texts() -> dict[str, torch.Tensor]:
    tokens = torch.randint(2, 40, (17, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.randint(3, 13, (17, 1), generator=torch.Generator().manual_seed(1))).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("feed_forward", ["gated-gelu", "relu"])
@pytest.mark.parametrize("scaled", [True, False])
def test_it_writes_what_generate_writes(size: int, feed_forward: str, scaled: bool) -> None:
    model = network(feed_forward)
    model.config.scale_decoder_outputs = scaled
    theirs = model.generate(**texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=size, do_sample=False, num_beams=1)
    ours = greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=size)
    assert torch.equal(ours, theirs[:, 1:])
    assert len(ours.unique(dim=0)) > 5, "the texts should matter"


def test_summaries_end_at_different_times_and_stay_padded() -> None:
    model = network()
    model.generation_config.eos_token_id = [1, *range(5, 15)]  # some end soon, some late
    theirs = model.generate(**texts(), max_new_tokens=LIMIT, do_sample=False, num_beams=1)[:, 1:]
    ours = greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=0)
    lengths = (ours != 0).sum(dim=1)
    assert torch.equal(ours, theirs) and len(lengths.unique()) > 3


def test_in_bfloat16_nearly_all_tokens_are_those_of_generate() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = model.generate(**texts(), max_new_tokens=LIMIT, do_sample=False, num_beams=1)[:, 1:]
        ours = greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=0)
    length = min(ours.shape[1], theirs.shape[1])
    assert (ours[:, :length] == theirs[:, :length]).all(dim=1).double().mean() > 0.8
