from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.demos.boring_classes import BoringModel

from litlab.loops import STEP_HOOKS, skip_empty_hooks


class Counting(Callback):
    """Overrides one hook of a step."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.calls += 1


class Module(BoringModel):
    """Overrides another."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.calls += 1


def test_hooks_that_somebody_has_overridden_are_called_and_the_others_are_skipped(tmp_path: Any) -> None:
    class Skipping(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            skip_empty_hooks(trainer)

    seen: list[int] = []
    callback = Counting()
    made = LambdaCallback(on_before_backward=lambda *args: seen.append(1))
    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module = Module()
    callbacks = [Skipping(), callback, made]
    trainer = Trainer(accelerator="cpu", max_steps=3, callbacks=callbacks, default_root_dir=tmp_path, **settings)
    trainer.fit(module)
    assert (callback.calls, module.calls, len(seen)) == (3, 3, 3)
    skipped = [hook for hook in STEP_HOOKS if getattr(callback, hook) is None]
    assert skipped == [hook for hook in STEP_HOOKS if hook != "on_train_batch_end"]
    assert module.on_train_batch_end is None and callable(module.on_before_zero_grad)
