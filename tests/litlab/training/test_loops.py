from contextlib import ExitStack
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from litlab.training.loops import STEP_HOOKS, shortcuts


class Shortcuts(Callback):
    """Applies `shortcuts` during the training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.context = ExitStack()
        self.context.enter_context(shortcuts(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.skipped = {
            owner: [hook for hook in STEP_HOOKS if getattr(owner, hook) is None]
            for owner in (pl_module, *trainer.callbacks)
        }
        self.context.close()


class Counting(Callback):
    """A callback that overrides one step hook and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.calls += 1


class Module(BoringModel):
    """A module that overrides another step hook and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.calls += 1


def test_overridden_hooks_are_called_and_the_others_are_skipped(tmp_path: Any) -> None:
    seen: list[int] = []
    callback = Counting()
    added = LambdaCallback(on_before_backward=lambda *args: seen.append(1))
    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module = Module()
    callbacks = [Shortcuts(), callback, added]
    trainer = Trainer(accelerator="cpu", max_steps=3, callbacks=callbacks, default_root_dir=tmp_path, **settings)
    trainer.fit(module)
    assert (callback.calls, module.calls, len(seen)) == (3, 3, 3)
    skipped = callbacks[0].skipped
    assert skipped[callback] == [hook for hook in STEP_HOOKS if hook != "on_train_batch_end"]
    assert skipped[module] == [hook for hook in STEP_HOOKS if hook != "on_before_zero_grad"]
    assert all(callable(getattr(owner, hook)) for owner in skipped for hook in STEP_HOOKS), (
        "the shortcuts end with the training"
    )


@pytest.mark.parametrize("overridden", ["nowhere", "module", "data"])
def test_batches_are_not_transferred_to_the_cpu_unless_a_transfer_hook_is_overridden(
    overridden: str, tmp_path: Any
) -> None:
    sent: list[int] = []

    def transfer(self: Any, batch: Any, device: Any, dataloader_idx: int) -> Any:
        sent.append(1)
        return batch

    seen: list[int] = []

    def after(self: Any, batch: Any, dataloader_idx: int) -> Any:
        seen.append(1)
        return batch

    bases = {"module": BoringModel, "data": BoringDataModule}
    parts = {
        name: type(name, (base,), {"transfer_batch_to_device": transfer} if name == overridden else {})()
        for name, base in bases.items()
    }

    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[Shortcuts()],
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(parts["module"], datamodule=parts["data"])
    assert trainer.global_step == 3 and len(sent) == (0 if overridden == "nowhere" else 3)
    trainer.validate(
        parts["module"],
        datamodule=type("Other", (BoringDataModule,), {"on_after_batch_transfer": after})(),
        verbose=False,
    )
    assert len(seen) == 1, "the transfer is skipped only during the training"


def test_importing_the_loops_patches_no_class() -> None:
    assert "__setattr__" not in vars(LightningModule)
