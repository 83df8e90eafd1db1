"""Ranks that Lightning or torchrun launches share the run that the first rank has chosen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from exactness import differing

from litlab.runs.directory import RunDirectory
from litlab.training import ranks

FIT = ("fit", "-c", "configs/experiment/small.yaml", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu")


def test_a_process_that_lightning_launches_uses_the_run_of_the_first_process_even_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checkpoint = tmp_path / "moved" / "20260101-000000-000-aaaaaaaa", tmp_path / "last.ckpt"
    monkeypatch.setenv(ranks.INHERITED, json.dumps([str(run), str(checkpoint), None]))
    assert ranks.inherited_start() is None  # this is the first rank
    monkeypatch.setattr(ranks.rank_zero_only, "rank", 1)
    start = ranks.inherited_start()
    assert start and (start.run.path, start.checkpoint, start.weights) == (run, checkpoint, None)


@pytest.mark.slow
def test_two_ranks_of_torchrun_equal_two_ranks_of_lightning(litlab, project: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    assert litlab(*FIT, *TWO, WANDB_MODE="disabled").returncode == 0
    one = (project / "runs" / "latest").resolve()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "litlab", *FIT, *TWO]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = (project / "runs" / "latest").resolve()
    assert sorted((project / "runs" / "small").glob("2*")) == [one, two]
    assert RunDirectory(two).record()["status"] == "finished" and not differing(one, two)
