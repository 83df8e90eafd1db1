import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from litlab.nn.t5_decoding import CACHE_ARGUMENT, BeamCache, _recordings, fixed_shapes, greedy, sample

LIMIT = 24


def network(feed_forward: str = "gated-gelu", **settings: object) -> T5ForConditionalGeneration:
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, feed_forward_proj=feed_forward, decoder_start_token_id=0, **settings)
    made = T5ForConditionalGeneration(config).eval()
    for parameter in made.parameters():  # larger weights, so that the next token depends on the text
        parameter.data.mul_(3)
    return made


def texts() -> dict[str, torch.Tensor]:
    tokens = torch.randint(2, 40, (17, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.randint(3, 13, (17, 1), generator=torch.Generator().manual_seed(1))).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("feed_forward", ["gated-gelu", "gated-silu", "relu"])
@pytest.mark.parametrize("scaled", [True, False])
def test_greedy_gives_the_same_tokens_as_generate(size: int, feed_forward: str, scaled: bool) -> None:
    model = network(feed_forward)
    model.config.scale_decoder_outputs = scaled
    theirs = model.generate(**texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=size, do_sample=False, num_beams=1)
    ours = greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=size)
    assert torch.equal(ours, theirs[:, 1:])
    assert len(ours.unique(dim=0)) > 5, "the summaries must depend on the texts"


def test_summaries_end_at_different_times_and_stay_padded() -> None:
    model = network()
    model.generation_config.eos_token_id = [1, *range(5, 15)]  # so that summaries have different lengths
    theirs = model.generate(**texts(), max_new_tokens=LIMIT, do_sample=False, num_beams=1)[:, 1:]
    ours = greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=0)
    lengths = (ours != 0).sum(dim=1)
    assert torch.equal(ours, theirs) and len(lengths.unique()) > 3


def test_several_summaries_of_a_text_equal_those_of_repeated_texts() -> None:
    model, count = network(), 5
    model.generation_config.eos_token_id = [1, *range(5, 15)]  # texts and summaries end at different times
    uniforms = torch.rand(17 * count, LIMIT, generator=torch.Generator().manual_seed(2))
    encoded, mask = model.encoder(**texts()).last_hidden_state, texts()["attention_mask"]
    ours = sample(model, encoded, mask, uniforms)
    assert torch.equal(
        ours, sample(model, *(each.repeat_interleave(count, dim=0) for each in (encoded, mask)), uniforms)
    )
    lengths = (ours != 0).sum(dim=1).view(17, count)
    assert len(lengths.unique()) > 5 and len(lengths.amax(dim=1).unique()) > 2 and (lengths != lengths[:, :1]).any()


def test_in_bfloat16_most_summaries_equal_those_of_generate() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = model.generate(**texts(), max_new_tokens=LIMIT, do_sample=False, num_beams=1)[:, 1:]
        ours = greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=0)
    length = min(ours.shape[1], theirs.shape[1])
    assert (ours[:, :length] == theirs[:, :length]).all(dim=1).double().mean() > 0.8


@pytest.mark.parametrize("size", [0, 1, 2, 3, 30])
@pytest.mark.parametrize("limit", [1, 8, LIMIT])
def test_fixed_shapes_give_the_same_tokens_as_greedy(size: int, limit: int) -> None:
    model = network()
    model.generation_config.eos_token_id = [1, *range(5, 9)]
    limits = {"max_new_tokens": limit, "no_repeat_ngram_size": size}
    assert torch.equal(fixed_shapes(model, **texts(), **limits), greedy(model, **texts(), **limits))


def test_fixed_shapes_stop_when_all_summaries_have_ended() -> None:
    model = network()
    model.generation_config.eos_token_id = list(range(2, 40))
    ours = fixed_shapes(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=0)
    assert torch.equal(ours, greedy(model, **texts(), max_new_tokens=LIMIT, no_repeat_ngram_size=0))
    assert ours.shape[1] < 8


def test_fixed_shapes_are_reused_and_use_the_current_weights() -> None:
    model, limits, recordings = network(), {"max_new_tokens": LIMIT, "no_repeat_ngram_size": 2}, set()
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        some = {name: values[:, : 12 - seed] for name, values in texts().items()}
        with torch.inference_mode(seed == 1):  # with and without inference mode, as in validation and elsewhere
            ours = fixed_shapes(model, **some, **limits)
        assert torch.equal(ours, greedy(model, **some, **limits))
        recordings.add(id(_recordings[model][1]))
    assert len(recordings) == 1


@pytest.mark.parametrize("size", [0, 2])
def test_beam_search_does_not_need_copies_of_the_cross_attention_cache(size: int) -> None:
    model = network()
    model.generation_config.eos_token_id = [1, *range(5, 9)]
    settings = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": LIMIT, "no_repeat_ngram_size": size}
    theirs = model.generate(**texts(), **settings, do_sample=False)
    assert torch.equal(model.generate(**texts(), **settings, do_sample=False, **{CACHE_ARGUMENT: BeamCache()}), theirs)
    assert len(theirs.unique(dim=0)) > 40


def test_without_an_end_token_summaries_have_the_maximum_length() -> None:
    model = network()
    model.generation_config.eos_token_id = None
    limits = {"max_new_tokens": 5, "no_repeat_ngram_size": 0}
    ours = greedy(model, **texts(), **limits)
    assert ours.shape == (17, 5) and torch.equal(ours, fixed_shapes(model, **texts(), **limits))


def test_fixed_shapes_in_bfloat16_mostly_give_the_same_tokens_as_greedy() -> None:
    model, limits = network(), {"max_new_tokens": LIMIT, "no_repeat_ngram_size": 3}
    with torch.autocast("cpu", torch.bfloat16):
        theirs = greedy(model, **texts(), **limits)
        ours = fixed_shapes(model, **texts(), **limits)
    length = min(ours.shape[1], theirs.shape[1])
    assert (ours[:, :length] == theirs[:, :length]).all(dim=1).double().mean() > 0.8
