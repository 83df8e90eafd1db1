import os
from pathlib import Path

import pytest
import torch

from litlab.errors import BadInput
from litlab.training.checkpoint_io import AtomicCheckpointIO


class Exploit:
    def __reduce__(self):
        return os.system, ("echo exploited",)


def test_a_saved_checkpoint_loads_with_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(3), "step": 7}, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["step"] == 7 and torch.equal(loaded["weights"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "bad": lambda: None}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_keeps_the_previous_checkpoint_and_gives_a_message(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "scratch")))
    with pytest.raises(
        BadInput, match=r"no space left in .* while writing a checkpoint: free some space, or set LITLAB_RUNS"
    ):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["step"] == 1


def test_a_checkpoint_with_code_is_refused_before_the_code_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Exploit()}, tmp_path / "evil.ckpt")
    with pytest.raises(BadInput, match=r"evil.ckpt is not a checkpoint that can be loaded safely"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    assert "exploited" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_gives_a_message(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(BadInput, match=r"last.ckpt is not a checkpoint .* it is damaged"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
