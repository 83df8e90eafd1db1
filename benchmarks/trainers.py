"""The peers of transformers, called as their example scripts do."""

import tempfile
import time
from typing import Any

from transformers import Trainer, TrainerCallback

# of every training here, litlab's too
COMMON: dict[str, Any] = {"weight_decay": 0.01, "warmup_steps": 0.1, "max_grad_norm": 1.0, "num_train_epochs": 1}
# what a careful user adds to the example scripts' flags
BEST: dict[str, Any] = {"bf16": True, "optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length"}


class TrainerClock(TrainerCallback):
    """Notes when a training begins and when its last step is done."""

    began = ended = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first batch comes next."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last call counts."""
        self.ended = time.perf_counter()


def arguments(**flags: Any) -> dict[str, Any]:
    """Training arguments for a CPU without reports and checkpoints; `flags` win."""
    quiet = {"output_dir": tempfile.mkdtemp(), "report_to": "none", "save_strategy": "no", "use_cpu": True}
    return {**quiet, **COMMON, **flags}


def seconds_of_trainer(trainer: Trainer) -> float:
    """Seconds from the first to the last step of a training."""
    clock = TrainerClock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.ended - clock.began
