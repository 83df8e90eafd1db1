"""Problems in libraries that litlab works around, reproduced with the libraries' own classes; UPSTREAM.md has a row per test.

If a test fails, its message names the workaround that the installed release no longer needs. A test that uses a private
name imports it itself, so a removed name fails only that test.
"""

import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import wandb
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC, MulticlassAUROC
from transformers import EncoderRepetitionPenaltyLogitsProcessor, T5Config, T5ForConditionalGeneration
from wandb_server import WandbServer

PROJECT = Path(__file__).resolve().parents[1]
BATCHES = 4  # batches per epoch
KEY = "0123456789" * 4
EMPTY_LOG = b":W&B\xe1\xbe\x00"  # the header of a .wandb file

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(BoringModel):
    """A model that records events: "batch 2", "validation", and the start and end of an epoch."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__()
        self.loader = loader or numbered_batches()
        self.events: list[str] = []

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return numbered_batches(2)

    def on_train_epoch_start(self) -> None:
        self.events.append("start")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.events.append(f"batch {int(batch[0][0, 0])}")
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("validation")
        self.log("val", 1.0)

    def on_train_epoch_end(self) -> None:
        self.events.append("end")


class StatefulLoader:
    """A dataloader whose state is the number of batches that it has yielded."""

    def __init__(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        self.position %= BATCHES
        while self.position < BATCHES:
            self.position += 1
            yield [torch.full((1, 32), self.position - 1.0)]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class RowsLogger(Logger):
    """A logger that records the rows."""

    name = version = "rows"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def numbered_batches(count: int = BATCHES) -> DataLoader:
    """Return a dataloader without state; batch i contains the number i."""
    return DataLoader(TensorDataset(torch.arange(count).float()[:, None].expand(count, 32)))


def call_at(hook: str, action: Callable[[Trainer], Any], call: int = 1) -> Callback:
    """Return a callback that runs an action at one call of a hook."""
    callback, calls = Callback(), iter(range(1, 1000))

    def act(trainer: Trainer, *args: Any) -> None:
        if next(calls) == call:
            action(trainer)

    setattr(callback, hook, act)
    return callback


def quiet_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=folder,
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": saving, **silent, **settings},
    )


def resume(
    folder: Path,
    hook: str,
    call: int = 1,
    make: Callable[[], Module] = lambda: Module(StatefulLoader()),
    **settings: Any,
) -> tuple[list[str], list[str]]:
    """Save a checkpoint at one call of a hook during a training, then resume from it in a second training.

    Returns:
        The events of the first training after the checkpoint, and the events of the resumed training; equal if resuming
        is exact.
    """
    checkpoint, module, again = folder / "a.ckpt", make(), make()
    before: list[str] = []

    def save(trainer: Trainer) -> None:
        before.extend(module.events)
        trainer.save_checkpoint(checkpoint)

    quiet_trainer(folder, call_at(hook, save, call), **settings).fit(module)
    quiet_trainer(folder, **settings).fit(again, ckpt_path=checkpoint)
    return module.events[len(before) :], again.events


def raised(action: Callable[[], Any]) -> str:
    """Return the class name of the error that an action raises, or an empty string."""
    try:
        action()
    except (Exception, SystemExit) as error:
        return type(error).__name__
    return ""


def warned(action: Callable[[], Any]) -> list[str]:
    """Return the warnings that an action emits."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in found]


# Lightning: precision


def test_lightning_refuses_to_clip_gradients_of_a_fused_optimizer_in_bfloat16() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    error = raised(lambda: MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0))
    assert error == "RuntimeError", "Lightning clips gradients of fused optimizers: delete Bf16Mixed.clip_gradients"


def test_lightning_casts_weights_again_at_every_use_under_autocast() -> None:
    with MixedPrecision("bf16-mixed", "cpu").forward_context():
        cached = torch.is_autocast_cache_enabled()
    assert not cached, "Lightning keeps cast weights: delete Bf16Mixed.autocast_context_manager"


def test_lightning_refuses_to_clip_gradients_by_norm_with_fsdp() -> None:
    error = raised(lambda: FSDPPrecision("bf16-mixed").clip_grad_by_norm())
    assert error == "MisconfigurationException", "Lightning clips sharded gradients: delete clip_sharded"


# Lightning: resuming


def test_lightning_skips_a_validation_that_was_due(tmp_path: Path) -> None:
    expected, resumed = resume(tmp_path, "on_train_batch_end", 2, val_check_interval=2)
    assert expected[:2] == ["validation"] * 2
    assert resumed != expected, "Lightning runs the validation that is due: delete LastCheckpoint.validation_due"


def test_lightning_skips_the_end_of_an_epoch_whose_last_step_was_done(tmp_path: Path) -> None:
    expected, resumed = resume(tmp_path, "on_train_batch_end", BATCHES)
    assert expected == ["validation", "validation", "end"]
    assert resumed != expected, "Lightning ends the epoch: delete FitLoop.done and EpochLoop._is_validation_done"


def test_lightning_drops_an_interrupted_validation(tmp_path: Path) -> None:
    expected, resumed = resume(tmp_path, "on_validation_batch_end")
    assert expected == ["validation", "end"]
    assert "validation" not in resumed, "Lightning continues a validation: delete LastCheckpoint.before_validation"


def test_lightning_starts_with_an_empty_epoch_if_max_steps_ended_the_last_one(tmp_path: Path) -> None:
    trainer, module = quiet_trainer(tmp_path, max_epochs=-1, max_steps=BATCHES), Module(StatefulLoader())
    trainer.fit(Module(StatefulLoader()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    quiet_trainer(tmp_path, max_epochs=-1, max_steps=2 * BATCHES).fit(module, ckpt_path=tmp_path / "a.ckpt")
    assert module.events[:2] != ["start", "batch 0"], "Lightning starts with the next epoch: delete FitLoop.reset"


def test_lightning_continues_training_after_early_stopping(tmp_path: Path) -> None:
    def stopping() -> Trainer:
        return quiet_trainer(tmp_path, EarlyStopping("val", patience=1, min_delta=10), max_epochs=9)

    trainer, module = stopping(), Module()
    trainer.fit(Module())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    stopping().fit(module, ckpt_path=tmp_path / "a.ckpt")
    assert module.events, "Lightning restores should_stop: delete it in LastCheckpoint"


def test_lightning_drops_the_state_of_a_dataloader_created_before_the_checkpoint_is_loaded(tmp_path: Path) -> None:
    class WithSchedule(Module):
        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    expected, resumed = resume(tmp_path, "on_train_batch_end", 2, lambda: WithSchedule(StatefulLoader()))
    assert resumed[0] != expected[0], "Lightning restores the dataloader's state: delete that in FitLoop.on_run_start"


def test_lightning_restarts_the_epoch_with_a_dataloader_without_state(tmp_path: Path) -> None:
    expected, resumed = resume(tmp_path, "on_train_batch_end", 2, Module)
    assert resumed[0] != expected[0], "Lightning skips batches that were trained on: delete EpochLoop._replay"


def test_lightning_starts_a_resumed_epoch_with_the_order_of_epoch_0(tmp_path: Path) -> None:
    class Epoch:
        """A dataloader that is its own sampler. Its iterator reads the epoch when it is created, as with workers."""

        epoch = 0
        sampler = property(lambda self: self)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            return iter([[torch.full((1, 32), float(self.epoch))]])

    trainer, module = quiet_trainer(tmp_path), Module(Epoch())
    trainer.fit(Module(Epoch()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    quiet_trainer(tmp_path, max_epochs=2).fit(module, ckpt_path=tmp_path / "a.ckpt")
    assert module.events[1] != "batch 1", "Lightning sets the epoch first: delete iter() in EpochLoop.on_run_start"


def test_lightning_calls_set_epoch_of_samplers_only(tmp_path: Path) -> None:
    class WithEpoch(StatefulLoader):
        epoch: int | None = None

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    module = Module(WithEpoch())
    quiet_trainer(tmp_path).fit(module)
    assert module.loader.epoch is None, "Lightning calls set_epoch of a dataloader: delete TrainingBatches.sampler"


def test_lightning_validates_in_the_middle_of_gradient_accumulation(tmp_path: Path) -> None:
    module = Module()
    quiet_trainer(tmp_path, accumulate_grad_batches=BATCHES, val_check_interval=2).fit(module)
    assert module.events[3] != "batch 2", (
        "Lightning validates between optimizer steps: delete _should_accumulate in EpochLoop._should_check_val_fx"
    )


def test_lightning_stops_in_the_middle_of_gradient_accumulation(tmp_path: Path) -> None:
    stop = call_at("on_train_batch_end", lambda trainer: setattr(trainer, "should_stop", True))
    trainer = quiet_trainer(tmp_path, stop, accumulate_grad_batches=BATCHES)
    trainer.fit(Module())
    assert trainer.global_step == 0, (
        "Lightning finishes the optimizer step: delete _should_accumulate in EpochLoop.done"
    )


# Lightning: checkpoints


def test_model_checkpoint_writes_before_the_step_ends(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "a", every_n_train_steps=2, save_top_k=1)
    quiet_trainer(tmp_path, saver, max_steps=2).fit(Module())
    loops = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]["total"]
    assert batches["completed"] < batches["processed"], (
        "ModelCheckpoint writes between steps: delete BestCheckpoint.write and the methods that it overrides"
    )


def test_model_checkpoint_loses_the_best_files_of_a_moved_run(tmp_path: Path) -> None:
    saved, moved = ModelCheckpoint(tmp_path / "old", monitor="val"), ModelCheckpoint(tmp_path / "new", monitor="val")
    saved.best_model_path = str(tmp_path / "old" / "a.ckpt")
    saved.best_k_models = {saved.best_model_path: torch.tensor(1.0)}
    moved.load_state_dict(saved.state_dict())
    assert not moved.best_k_models, "ModelCheckpoint follows a moved run: delete BestCheckpoint.load_state_dict"


def test_model_checkpoint_does_not_restore_the_current_score(tmp_path: Path) -> None:
    saved, restored = ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path)
    saved.current_score = torch.tensor(1.0)
    restored.load_state_dict(saved.state_dict())
    assert restored.current_score is None, "ModelCheckpoint restores it: delete current_score in BestCheckpoint"


def test_model_checkpoint_loses_its_state_when_its_interval_changes() -> None:
    keys = {ModelCheckpoint(every_n_train_steps=steps).state_key for steps in (1, 2)}
    assert len(keys) == 2, "ModelCheckpoint's key does not depend on its interval: delete BestCheckpoint.state_key"


def test_checkpoints_lack_the_random_state(tmp_path: Path) -> None:
    class Drawing(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.events.append(str(torch.rand(()).item()))
            return super().training_step(batch, batch_idx)

    expected, resumed = resume(tmp_path, "on_train_batch_end", 2, lambda: Drawing(StatefulLoader()))
    assert resumed[1::2] == expected[1::2]  # the same batches
    assert resumed[0] != expected[0], "Lightning saves random states: delete that in LastCheckpoint"


def test_checkpoints_lack_the_unfinished_mean_of_an_epoch(tmp_path: Path) -> None:
    class Averaging(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("mean", batch[0][0, 0], on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_fit_end(self) -> None:
            self.events = [str(self.trainer.callback_metrics["mean"].item())]

    quiet_trainer(
        tmp_path, call_at("on_train_batch_end", lambda trainer: trainer.save_checkpoint(tmp_path / "a.ckpt"), 2)
    ).fit(uninterrupted := Averaging(StatefulLoader()))
    quiet_trainer(tmp_path).fit(resumed := Averaging(StatefulLoader()), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.events != uninterrupted.events, (
        "Lightning saves unfinished means: delete mean_state and unfinished_mean"
    )


def test_checkpoints_lack_the_logged_metrics(tmp_path: Path) -> None:
    class Reading(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.events.append(", ".join(self.trainer.callback_metrics))
            return super().training_step(batch, batch_idx)

    expected, resumed = resume(
        tmp_path, "on_train_batch_end", 3, lambda: Reading(StatefulLoader()), val_check_interval=2
    )
    assert expected[:2] == ["val", "batch 3"]
    assert resumed[:2] != expected[:2], "Lightning saves the logged metrics: delete LOGGED"


def test_checkpoints_lack_the_states_of_metrics() -> None:
    class Measuring(Module):
        def __init__(self) -> None:
            super().__init__()
            self.metric = MeanMetric()

    module = Measuring()
    module.metric.update(1.0)
    names = [name for name in module.state_dict() if name.startswith("metric")]
    assert not names, "torchmetrics saves the states of metrics: delete that in LastCheckpoint"


def test_lightning_writes_checkpoints_to_the_temporary_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    error = raised(lambda: TorchCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt"))
    assert error == "FileNotFoundError", "Lightning writes beside the target: delete AtomicCheckpointIO.save_checkpoint"


# Lightning: trainer and loggers


def test_lightning_handles_sigterm_in_the_middle_of_a_validation(tmp_path: Path) -> None:
    received: list[int] = []
    original = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        terminate = call_at("on_validation_start", lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        error = raised(lambda: quiet_trainer(tmp_path, terminate).fit(Module()))
    finally:
        signal.signal(signal.SIGTERM, original)
    assert received
    assert error == "SIGTERMException", "Lightning keeps existing signal handlers: delete use_own_signal_handlers"


def test_lightning_logs_an_evaluation_at_the_step_of_the_trainer(tmp_path: Path) -> None:
    logger, module = RowsLogger(), Module()
    save = call_at("on_validation_end", lambda trainer: trainer.save_checkpoint(tmp_path / "a.ckpt"))
    trainer = quiet_trainer(tmp_path, save, logger=logger, max_epochs=2)
    trainer.fit(module)
    trainer.validate(module, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    steps = [step for step, metrics in logger.rows if "val" in metrics]
    assert steps[-1] != steps[0], "Lightning logs at the checkpoint's step: do not replace log_eval_end_metrics"


def test_csv_logger_deletes_the_file_of_an_earlier_run(tmp_path: Path) -> None:
    for value in (1, 2):
        logger = CSVLogger(tmp_path, name="", version="")
        logger.log_metrics({"value": value}, step=value)
        logger.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 2, "CSVLogger continues a file: MetricsCsv can derive from it"


def test_trainer_accepts_zero_as_a_divisor(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, accumulate_grad_batches=0, check_val_every_n_epoch=0)
    error = raised(lambda: trainer.fit(Module()))
    assert error == "ZeroDivisionError", "The Trainer refuses zero: delete POSITIVE in LitlabCLI"


def test_lightning_does_not_raise_misconfiguration_exception_for_some_settings(tmp_path: Path) -> None:
    too_long = raised(lambda: quiet_trainer(tmp_path, val_check_interval=BATCHES + 1).fit(Module()))
    unknown = raised(lambda: quiet_trainer(tmp_path, EarlyStopping("unknown")).fit(Module()))
    kind = MisconfigurationException.__name__
    assert too_long != kind and unknown != kind, f"Lightning raises {kind}: shorten MISCONFIGURED"


def test_lightning_kills_the_first_process_when_another_one_fails() -> None:
    from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as first:
        child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(75)"])
        child.wait()
        _ChildProcessObserver(main_pid=first.pid, child_processes=[child])._run()
        first.communicate(b"\n")
    assert first.returncode == -signal.SIGKILL, "Lightning does not kill the first process: delete is_child"


def test_lightning_warns_about_means_that_are_equal_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.trainer.connectors.logger_connector import result

    monkeypatch.setattr(result, "_distributed_is_initialized", lambda: True)
    monkeypatch.setattr(result, "warning_cache", WarningCache())
    found = warned(lambda: quiet_trainer(tmp_path).fit(Module()))
    assert any("sync_dist=True" in text for text in found), (
        "Lightning does not ask for sync_dist: delete it in the models"
    )


def test_lightning_emits_the_warnings_that_the_command_line_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.trainer.connectors import data_connector

    monkeypatch.setattr(data_connector, "warning_cache", WarningCache())  # it emits each warning once per process

    class Shaping(Module):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    def train() -> None:
        save = call_at("on_train_batch_end", lambda trainer: trainer.save_checkpoint(tmp_path / "a.ckpt"), 2)
        quiet_trainer(tmp_path, save).fit(Module())
        data = LightningDataModule.from_datasets(TensorDataset(torch.ones(BATCHES, 32)))
        trainer = quiet_trainer(tmp_path, ModelCheckpoint(tmp_path), logger=RowsLogger())
        trainer.fit(Shaping(), datamodule=data, ckpt_path=tmp_path / "a.ckpt")

    found = "\n".join(warned(train))
    for words in (
        "LeafSpec.*is deprecated",
        "smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
        "ended before the epoch ended and your dataloader is",
        "overridden `on_before_batch_transfer` in `LightningModule`",
    ):
        assert re.search(words, found), f"Lightning does not warn of {words!r}: delete it in IGNORED_WARNINGS"


def test_wandb_logger_passes_an_argument_that_wandb_will_remove(tmp_path: Path) -> None:
    arguments = WandbLogger(save_dir=tmp_path)._wandb_init
    assert "anonymous" in arguments, "WandbLogger does not pass anonymous: delete it in Wandb"


def test_wandb_logger_has_no_option_for_the_name_of_the_step() -> None:
    options = inspect.signature(WandbLogger).parameters
    assert "log_key_prefix" not in options, "WandbLogger takes log_key_prefix: pass it, delete Wandb.log_metrics"


# Lightning's command line, jsonargparse, YAML


def test_lightning_cli_accepts_a_training_without_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["test"])
    options: dict[str, Any] = {"args": ["--seed_everything=false"], "trainer_defaults": {"logger": False}}
    error = raised(lambda: LightningCLI(BoringModel, run=False, **options))
    assert not error, "LightningCLI accepts only integers: delete LitlabCLI.add_default_arguments_to_parser"


def test_lightning_cli_warns_about_other_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["test", "word"])
    options: dict[str, Any] = {"args": ["--seed_everything=false"], "trainer_defaults": {"logger": False}}
    found = warned(lambda: LightningCLI(BoringModel, run=False, **options))
    assert any("args parameter" in text for text in found), "LightningCLI does not warn: keep sys.argv in LitlabCLI"


def test_jsonargparse_does_not_validate_null() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=1)
    error = raised(lambda: parser.validate(jsonargparse.Namespace(number=None)))
    assert not error, "jsonargparse validates null: delete LitlabCLI._refuse_null"


def test_jsonargparse_cannot_dump_an_enum_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonargparse import _loaders_dumpers

    monkeypatch.setitem(_loaders_dumpers.dumpers, "yaml", _loaders_dumpers.yaml_dump)  # the original dumper
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Timer, "timer")
    error = raised(lambda: parser.dump(parser.get_defaults()))
    assert error == "RepresenterError", "jsonargparse dumps the defaults of Timer: delete Dumper in LitlabCLI"


class Failing:
    """A configurable class whose constructor raises a KeyError."""

    def __init__(self, number: int = 1) -> None:
        raise KeyError("the real reason")


def test_jsonargparse_hides_the_error_of_a_constructor() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(Failing, "part")
    config = parser.parse_object({"part": {"class_path": f"{__name__}.Failing"}})
    error = raised(lambda: parser.instantiate_classes(config))
    assert error == "ValueError", (
        "jsonargparse raises the constructor's error: delete the except in instantiate_classes"
    )


def test_yaml_accepts_duplicate_keys() -> None:
    error = raised(lambda: yaml.safe_load("a: 1\na: 2"))
    assert not error, "PyYAML refuses duplicate keys: delete that in config_file.py"


# torch, torchmetrics, transformers


def test_torch_loads_a_checkpoint_with_a_wrong_checksum(tmp_path: Path) -> None:
    file, content = tmp_path / "a.ckpt", torch.arange(100.0)
    torch.save(content, file)
    data, numbers = bytearray(file.read_bytes()), content.numpy().tobytes()
    data[data.index(numbers) + 6] ^= 1
    file.write_bytes(data)
    error = raised(lambda: torch.load(file, weights_only=True))
    assert not error, "torch compares checksums: delete testzip in runs/checkpoint.py"


def test_flop_counter_prevents_the_compilation_of_a_function() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    function = torch.compile(lambda value: value @ value, backend=backend)
    with FlopCounterMode(display=False):
        function(torch.ones(2, 2))
    function(torch.ones(2, 2))
    assert not compiled, "A function called first under FlopCounterMode is compiled later: delete Throughput._undecided"


def test_roc_auc_of_a_single_class_is_zero() -> None:
    area = BinaryAUROC()(torch.tensor([0.1, 0.9]), torch.tensor([1, 1]))
    assert area == 0, "BinaryAUROC is not 0 for a single class: delete BinaryRocAuc"


def test_roc_auc_counts_an_absent_class_as_zero() -> None:
    perfect = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    area = MulticlassAUROC(3)(perfect, torch.tensor([0, 1]))
    assert area < 1, "MulticlassAUROC leaves absent classes out: delete RocAuc"


def small_t5(**settings: Any) -> T5ForConditionalGeneration:
    sizes: dict[str, Any] = {"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_heads": 2, "num_layers": 1}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, **settings))


def test_t5_ties_embeddings_that_the_configuration_unties() -> None:
    network = small_t5(tie_word_embeddings=False)
    assert network.lm_head.weight is network.shared.weight, "A new T5 can be untied: delete the new lm_head in grow"


def test_t5_with_more_decoder_layers_than_encoder_layers_cannot_generate() -> None:
    network = small_t5(num_decoder_layers=2)
    error = raised(lambda: network.generate(torch.tensor([[2, 1]]), max_new_tokens=2))
    assert error == "IndexError", "Such a T5 can generate: delete the check in grow"


def test_encoder_repetition_penalty_raises_the_score_of_padding() -> None:
    processor = EncoderRepetitionPenaltyLogitsProcessor(penalty=2.0, encoder_input_ids=torch.tensor([[5, 0]]))
    scores = processor(torch.tensor([[1]]), torch.full((1, 6), -1.0))
    assert scores[0, 0] > -1, "The score of padding stays the same: do not replace it in T5Summarizer.hypotheses"


# W&B


class Server(WandbServer):
    """A W&B server that records all queries."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[str] = []

    def _graphql(self, query: str, variables: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
        self.queries.append(query)
        return super()._graphql(query, variables, **others)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    wandb.teardown()
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
    wandb.teardown()


def init_wandb(folder: Path, **settings: Any) -> Any:
    mode = settings.pop("mode", "online")
    options = wandb.Settings(**{"silent": True, "quiet": True, "finish_timeout": 2, **settings})
    return wandb.init(project="project", dir=folder, id="run", mode=mode, settings=options)


def test_wandb_login_sends_a_request_without_verification(server: Server) -> None:
    wandb.login(prompt=False, verify=False)
    assert server.requests, "wandb.login sends no request: delete wandb.setup in choose_mode"


def test_wandb_init_requests_the_user_name_before_its_timeout_starts(server: Server, tmp_path: Path) -> None:
    init_wandb(tmp_path, quiet=False, silent=False).finish()
    assert "Viewer" in server.queries[0], "wandb.init does not request the user's name: delete quiet in Wandb"


def test_wandb_init_fails_after_a_failed_init(server: Server, tmp_path: Path) -> None:
    server.refuses = True
    assert raised(lambda: init_wandb(tmp_path)) == "CommError"
    error = raised(lambda: init_wandb(tmp_path, mode="offline").finish())
    assert error == "ServerResponseError", "wandb.init can be called again: delete wandb.teardown in Wandb.experiment"


def test_wandb_sync_stops_at_an_empty_log(server: Server, tmp_path: Path) -> None:
    run = init_wandb(tmp_path, mode="offline")
    run.log({"value": 1})
    run.finish()
    empty = tmp_path / "wandb" / "offline-run-20000101_000000-run"
    empty.mkdir()
    (empty / "run-run.wandb").write_bytes(EMPTY_LOG)
    folders = sorted(map(str, tmp_path.glob("wandb/offline-run-*")))
    subprocess.run([sys.executable, "-m", "wandb", "sync", *folders], capture_output=True)
    assert not server.rows, "wandb sync continues after an empty log: delete EMPTY_LOG in Wandb._begin"


# UPSTREAM.md


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of a table in UPSTREAM.md, without the header."""
    lines = (PROJECT / "UPSTREAM.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def test_upstream_md_has_a_row_for_each_test_of_this_file() -> None:
    rows = [row[-1].strip("`") for row in rows_of("Workarounds")]
    tests = [name for name in globals() if name.startswith("test_") and "upstream_md" not in name]
    assert sorted(rows) == sorted(tests)


@pytest.mark.parametrize(("section", "columns"), [("Workarounds", [3]), ("Private names", [1, 2, 3])])
def test_upstream_md_names_existing_files_and_identifiers(section: str, columns: list[int]) -> None:
    missing = []
    for row in rows_of(section):
        words = re.findall("`([^`]+)`", " ".join(row[column] for column in columns))
        paths = [PROJECT / word for word in words if "/" in word]
        missing += [str(path) for path in paths if not path.exists()]
        text = "".join(path.read_text() for path in paths if path.exists())
        missing += [f"{row[0]}: {word}" for word in words if "/" not in word and word.split(".")[-1] not in text]
    assert not missing
