"""Reads and sets state that Lightning does not save: random number generators, unfinished metrics and means."""

import random
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric

State = dict[str, Any]


def random_state() -> State:
    """Return the state of all global random number generators, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: State) -> None:
    """Set the state of all global random number generators."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # with a different number of GPUs, the resume is not exact
        torch.cuda.set_rng_state_all(state["cuda"])


def metrics_of(module: LightningModule) -> list[tuple[str, Metric]]:
    """Return the names and metrics of a module."""
    return [(name, child) for name, child in module.named_modules() if isinstance(child, Metric)]


def metric_state(metric: Metric) -> State:
    """Return the accumulated state of a metric."""
    return {"states": dict(metric.metric_state), "count": metric._update_count}


def set_metric_state(metric: Metric, state: State) -> None:
    """Set the state of a metric to one from `metric_state`."""
    device = metric.device
    for name, value in state["states"].items():
        setattr(metric, name, [part.to(device) for part in value] if isinstance(value, list) else value.to(device))
    metric._update_count = state["count"]


def mean_state(mean: _ResultMetric) -> State:
    """Return the accumulated mean of a value logged with `on_epoch=True`, as plain values and tensors."""
    meta = mean.meta
    plain = {
        field.name: getattr(meta, field.name) for field in fields(meta) if field.name not in ("reduce_fx", "_sync")
    }
    sync = {"should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    return {
        "meta": {**plain, "reduce_fx": meta.reduce_fx.__name__},
        "sync": sync,
        "tensor": mean.is_tensor,
        **metric_state(mean),
    }


def unfinished_mean(trainer: Trainer, state: State) -> _ResultMetric:
    """Create a mean with a state from `mean_state`."""
    meta = _Metadata(**state["meta"])
    meta.sync = _Sync(
        _should=state["sync"]["should"], fn=trainer.strategy.reduce, rank_zero_only=state["sync"]["rank_zero_only"]
    )
    mean = _ResultMetric(meta, state["tensor"]).to(trainer.strategy.root_device)
    set_metric_state(mean, state)
    if not state["tensor"]:
        mean.value = trainer.lightning_module.get_submodule(state["meta"]["metric_attribute"])
    return mean
