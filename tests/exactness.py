"""Compare two finished runs bit for bit, except for paths, dates and speed."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch

from litlab.training.throughput import METRICS

# keys that contain the path of a run
PATHS = ("run", "dirpath", "best_model_path", "kth_best_model_path", "last_model_path")


def differing(one: Path, two: Path) -> list[str]:
    """The differences between two run directories, each as a path into a file; empty if there are none."""
    found = []
    # checkpoints
    names = sorted({file.name for run in (one, two) for file in (run / "checkpoints").glob("*.ckpt")})
    for name in names:
        contents = [
            torch.load(run / "checkpoints" / name, map_location="cpu", weights_only=True)
            if (run / "checkpoints" / name).exists()
            else None
            for run in (one, two)
        ]
        found += _differing(*contents, name)
    # logged metrics, configuration, evaluation metrics and predictions
    found += _differing(deterministic(one), deterministic(two), "metrics.csv")
    found += _differing(*((run / "config.yaml").read_text().splitlines() for run in (one, two)), "config.yaml")
    evaluations = [
        {split: {**result, "at": None} for split, result in json.loads((run / "eval.json").read_text()).items()}
        for run in (one, two)
    ]
    found += _differing(*evaluations, "eval.json")
    tables = [pyarrow.parquet.read_table(run / "predictions" / "val.parquet").to_pydict() for run in (one, two)]
    found += _differing(*tables, "predictions")
    # the record of the run
    before, after = (json.loads((run / "run.json").read_text()) for run in (one, two))
    return found + [name for name in ("steps", "best", "status", "data_fingerprint") if before[name] != after[name]]


def deterministic(run: Path) -> list[list[str]]:
    """Header and rows of metrics.csv without the columns of throughput and memory."""
    with (run / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    kept = [number for number, name in enumerate(header) if name not in METRICS]
    return [[row[number] for number in kept] for row in (header, *rows)]


def _differing(one: Any, two: Any, place: str) -> list[str]:
    if type(one) is not type(two):
        return [f"{place}: {one!r:.60} and {two!r:.60}"]
    if isinstance(one, dict):
        one, two = ({_without_folder(key): value for key, value in part.items()} for part in (one, two))
        keys = [key for key in {**one, **two} if key not in PATHS]
        return [line for key in keys for line in _differing(one.get(key), two.get(key), f"{place}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return [f"{place}: {len(one)} and {len(two)} items"]
        return [line for i, pair in enumerate(zip(one, two, strict=True)) for line in _differing(*pair, f"{place}/{i}")]
    if torch.is_tensor(one):
        same = one.dtype == two.dtype and one.shape == two.shape and _bits(one) == _bits(two)
    elif isinstance(one, float):
        same = np.float64(one).tobytes() == np.float64(two).tobytes()
    else:
        same = one == two
    return [] if same else [f"{place}: {one!r:.60} and {two!r:.60}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _without_folder(key: Any) -> Any:
    """The file name of a key that is a path; any other key as it is."""
    return Path(key).name if isinstance(key, str) and key.startswith("/") else key
