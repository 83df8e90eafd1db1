"""transformers' Trainer as a peer, with the arguments of transformers' example scripts."""

import tempfile
import time
from typing import Any

from transformers import Trainer, TrainerCallback

# arguments of all trainings in the benchmarks, also of litlab's
COMMON: dict[str, Any] = {"weight_decay": 0.01, "warmup_steps": 0.1, "max_grad_norm": 1.0, "num_train_epochs": 1}
# flags that make Trainer fast, in addition to those of the example scripts
BEST: dict[str, Any] = {"bf16": True, "optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length"}


class TrainerClock(TrainerCallback):
    """Records the times of the start and the last step of a training."""

    began = ended = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the time before the first batch."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the time after each step; the last one remains."""
        self.ended = time.perf_counter()


def arguments(**flags: Any) -> dict[str, Any]:
    """Training arguments for a CPU, without reports and checkpoints; `flags` override them."""
    quiet = {"output_dir": tempfile.mkdtemp(), "report_to": "none", "save_strategy": "no", "use_cpu": True}
    return {**quiet, **COMMON, **flags}


def seconds_of_trainer(trainer: Trainer) -> float:
    """Seconds from the start to the last step of a training."""
    clock = TrainerClock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.ended - clock.began
