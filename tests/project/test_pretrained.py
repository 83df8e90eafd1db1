from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from litlab.sources.pretrained import load_model, load_tokenizer

PRETRAINED = Path(__file__).parents[2] / "src" / "project" / "pretrained"


@pytest.mark.parametrize("folder", sorted(PRETRAINED.iterdir()), ids=lambda folder: folder.name)
def test_a_shipped_model_is_complete_and_small_and_has_a_card(folder: Path) -> None:
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(files.values()) <= 30_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(files)
    card = (folder / "README.md").read_text().lower()
    for word in ("licence", "command", "commit", "tokens", "hardware", "hours", "loss", "limits"):
        assert word in card, word


def test_the_shipped_t5_gives_each_summary_the_lowest_loss_with_its_own_text() -> None:
    folder = str(PRETRAINED / "t5-documentation")
    model, tokenizer = load_model(AutoModelForSeq2SeqLM, folder).eval(), load_tokenizer(folder)
    pairs = {
        "Return the number of rows in the table.": "Rows that were deleted are not counted. If the table is empty, "
        "zero is returned. The number is read from the header, so that the table itself is not scanned.",
        "Delete the specified user account.": "The account cannot be restored after it was deleted, and all of its "
        "keys are revoked. You must have the permission to manage users in order to call this operation.",
        "Plot a histogram of the data.": "The values are divided into bins of equal width, and the height of each bar "
        "shows how many of them fall into a bin. The figure is drawn on the current axes.",
    }

    def loss(text: str, summary: str) -> float:
        inputs, labels = (tokenizer(part, return_tensors="pt").input_ids for part in (text, summary))
        with torch.no_grad():
            return float(model(input_ids=inputs, labels=labels).loss)

    for summary, text in pairs.items():
        others = [other for other in pairs.values() if other != text]
        assert loss(text, summary) < min(loss(other, summary) for other in others) - 0.1
