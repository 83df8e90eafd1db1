from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litlab.data.batches import LENGTH_SORT_WINDOW, EvaluationBatches, Ragged, TrainingBatches, by_length, shuffled
from litlab.errors import BadInput


def fetch(indices):
    return {"id": indices.tolist()}


def global_batches(size, batch_size, world_size, accumulation, epoch=0, start=0):
    """The examples of all ranks together: one sorted list of ids per optimizer step."""
    loaders = [
        TrainingBatches(fetch, shuffled(size, batch_size, seed=3), rank, world_size, accumulation)
        for rank in range(world_size)
    ]
    for loader in loaders:
        loader.load_state_dict({"epoch": epoch, "position": start})
    steps = []
    for shares in zip(*loaders, strict=True):
        ids = [id for share in shares if share["weight"] for id in share["id"]]
        steps.append(ids)
    return [sorted(chain(*steps[i : i + accumulation])) for i in range(0, len(steps), accumulation)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3))
def test_global_batches_do_not_depend_on_ranks_or_accumulation(size, batch_size, world_size, accumulation):
    assert global_batches(size, batch_size, world_size, accumulation) == global_batches(size, batch_size, 1, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3))
def test_weighted_slice_means_average_to_the_mean_of_the_global_batch(size, batch_size, world_size, accumulation):
    values = np.random.default_rng(0).normal(size=size)
    plan = shuffled(size, batch_size, seed=0)
    loaders = [TrainingBatches(fetch, plan, rank, world_size, accumulation) for rank in range(world_size)]
    slices = [
        [values[batch["id"]].mean() * batch["weight"] for batch in shares] for shares in zip(*loaders, strict=True)
    ]
    for step, whole in enumerate(plan(0)):
        parts = slices[step * accumulation : (step + 1) * accumulation]
        assert np.mean(parts) == pytest.approx(values[whole].mean())


def test_each_epoch_visits_every_example_once_in_another_order():
    plan = shuffled(100, 7, seed=0)
    epochs = [np.concatenate(plan(epoch)).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


LENGTHS = np.random.default_rng(0).integers(2, 60, 1500)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=120), st.integers(1, 9), st.integers(0, 3))
def test_batches_by_length_visit_every_example_once_and_only_one_is_smaller(lengths, batch_size, epoch):
    batches = by_length(np.array(lengths), batch_size, seed=0)(epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = sorted(map(len, batches), reverse=True)
    assert sizes[:-1] == [batch_size] * (len(batches) - 1) and 0 < sizes[-1] <= batch_size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 3), st.sampled_from([5, 255, 256, 70_000]), st.sampled_from(["i8", "i4"]))
def test_batches_by_length_are_windows_of_a_permutation_sorted_and_shuffled(size, batch_size, longest, dtype):
    lengths = np.random.default_rng(size).integers(1, longest + 1, size).astype(dtype)
    plan = by_length(lengths, batch_size, seed=3)
    for epoch in (0, 1, 0):
        random = np.random.default_rng([3, epoch])
        order, expected = random.permutation(size).tolist(), []
        for start in range(0, size, LENGTH_SORT_WINDOW * batch_size):
            window = sorted(order[start : start + LENGTH_SORT_WINDOW * batch_size], key=lambda row: lengths[row])
            expected += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        expected = [expected[number] for number in random.permutation(len(expected))]
        assert [batch.tolist() for batch in plan(epoch)] == expected


def test_batches_by_length_are_a_function_of_seed_and_epoch():
    def drawn(seed, epoch):
        return [batch.tolist() for batch in by_length(LENGTHS, 16, seed)(epoch)]

    assert drawn(0, 1) == drawn(0, 1)
    assert sorted(drawn(0, 0)) != sorted(drawn(0, 1)) != sorted(drawn(1, 1))  # not only another order


def test_batches_by_length_need_little_padding_and_random_ones_much():
    def padded(plan):
        return sum(len(batch) * LENGTHS[batch].max() for batch in plan(0)) / LENGTHS.sum() - 1

    assert padded(by_length(LENGTHS, 16, seed=0)) < 0.05
    assert padded(shuffled(len(LENGTHS), 16, seed=0)) > 0.5


def test_batches_by_length_come_in_an_order_that_does_not_depend_on_length():
    lengths = [[LENGTHS[batch].mean() for batch in by_length(LENGTHS, 4, seed=0)(epoch)] for epoch in range(4)]
    for means in lengths:
        assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2
        assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2


def test_batches_by_two_lengths_pad_targets_much_less_and_texts_little_more():
    targets = np.random.default_rng(7).integers(1, 30, len(LENGTHS))

    def padded(plan, lengths):
        batches = plan(0)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum() - 1

    one, two = by_length(LENGTHS, 16, 0), by_length(LENGTHS, 16, 0, targets)
    assert padded(two, targets) < 0.4 * padded(one, targets)
    assert padded(two, LENGTHS) < padded(one, LENGTHS) + 0.1


def test_with_equal_lengths_batches_by_length_mix_all_examples():
    batches = by_length(np.full(4 * LENGTH_SORT_WINDOW * 4, 7), 4, seed=0)(0)
    assert np.mean([batch.max() - batch.min() for batch in batches]) > LENGTH_SORT_WINDOW * 4


TOKENS = np.random.default_rng(1).integers(1, 30, 70)  # target tokens of each example


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3))
def test_weighted_token_means_average_to_the_token_mean_of_the_global_batch(size, batch_size, world_size, accumulation):
    losses = [np.random.default_rng(number).normal(size=count) for number, count in enumerate(TOKENS)]
    plan = by_length(TOKENS[:size], batch_size, seed=0)
    loaders = [
        TrainingBatches(fetch, plan, rank, world_size, accumulation, measure=lambda rows: int(TOKENS[rows].sum()))
        for rank in range(world_size)
    ]
    steps = list(zip(*loaders, strict=True))
    for step, whole in enumerate(plan(0)):
        shares = [share for micro in steps[step * accumulation : (step + 1) * accumulation] for share in micro]
        means = [np.concatenate([losses[id] for id in share["id"]]).mean() * share["weight"] for share in shares]
        assert np.mean(means) == pytest.approx(np.concatenate([losses[id] for id in whole]).mean())
        assert sum(share["size"] for share in shares) == TOKENS[whole].sum()
        for share in shares:
            assert share["size"] == (TOKENS[share["id"]].sum() if share["weight"] else 0)


def test_without_a_measure_the_size_is_the_number_of_examples():
    shares = [list(TrainingBatches(fetch, shuffled(7, 4, seed=0), rank, 2)) for rank in range(2)]
    assert [[batch["size"] for batch in batches] for batches in shares] == [[2, 2], [2, 1]]
    assert [[batch["weight"] for batch in batches] for batches in shares] == [[1, 4 / 3], [1, 2 / 3]]
    assert [batch["size"] for batch in TrainingBatches(fetch, shuffled(7, 4, seed=0))] == [4, 3]


def test_a_rank_without_examples_repeats_one_with_weight_zero():
    plan = shuffled(1, 4, seed=0)
    loaders = [TrainingBatches(fetch, plan, rank, 2, measure=lambda rows: 5 * len(rows)) for rank in range(2)]
    (first,), (second,) = loaders
    assert first == {"id": [0], "size": 5, "weight": 2} and second == {"id": [0], "size": 0, "weight": 0}


def test_the_state_is_two_integers():
    loader = TrainingBatches(fetch, shuffled(10, 3, seed=0))
    iterator = iter(loader)
    next(iterator), next(iterator)
    assert loader.state_dict() == {"epoch": 0, "position": 2}


@pytest.mark.parametrize(("before", "after"), [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((4, 1), (3, 1)), ((1, 3), (2, 1))])
def test_a_state_can_be_resumed_with_another_number_of_ranks(before, after):
    size, batch_size = 53, 8
    loader = TrainingBatches(fetch, shuffled(size, batch_size, seed=3), 0, *before)
    loader.set_epoch(2)
    for _, _ in zip(range(3 * before[1]), loader, strict=False):
        pass
    rest = global_batches(size, batch_size, *after, **{"epoch": 2, "start": loader.state_dict()["position"]})
    assert rest == global_batches(size, batch_size, 1, 1, epoch=2)[3:]


def test_a_new_epoch_starts_at_its_first_batch_even_if_the_last_one_was_not_finished():
    loader = TrainingBatches(fetch, shuffled(10, 2, seed=0))
    next(iter(loader))
    loader.set_epoch(0)
    assert loader.position == 1
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "position": 0}


def test_batches_do_not_change_the_global_random_state():
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(TrainingBatches(fetch, shuffled(20, 3, seed=1)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_visits_each_example_once_and_all_ranks_have_the_same_number_of_steps(size, batch_size, world_size):
    if size < world_size:
        with pytest.raises(BadInput, match="fewer devices"):
            EvaluationBatches(fetch, np.arange(size), batch_size, 0, world_size)
        return
    shares = [list(EvaluationBatches(fetch, np.arange(size), batch_size, r, world_size)) for r in range(world_size)]
    assert sorted(id for share in shares for batch in share for id in batch["id"]) == list(range(size))
    assert len({len(share) for share in shares}) == 1
    assert all(batch["id"] for share in shares for batch in share)


def ragged(sequences) -> Ragged:
    offsets = np.cumsum([0, *map(len, sequences)])
    return Ragged(np.array([value for sequence in sequences for value in sequence], np.int32), offsets)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_padding_equals_a_loop_over_the_sequences(data) -> None:
    sequences = data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), min_size=1, max_size=12))
    rows = data.draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=9))
    fill = data.draw(st.sampled_from([0, -100, 7]))
    multiple = data.draw(st.integers(1, 5))
    batch, real = ragged(sequences).padded(np.array(rows), fill, multiple)
    length = max(len(sequences[row]) for row in rows)
    while length % multiple and length < max(map(len, sequences)):
        length += 1
    assert batch.tolist() == [sequences[row] + [fill] * (length - len(sequences[row])) for row in rows]
    assert real.tolist() == [[place < len(sequences[row]) for place in range(length)] for row in rows]
    assert batch.dtype.is_signed and batch.element_size() == 8
