"""What the command line sets for its whole process, at its start. Importing litlab or project sets none of it."""

import ctypes
import logging
import os
import sys
import warnings
from pathlib import Path

from litlab.cli.settings import find_project

IGNORED_WARNINGS = (
    ".*smaller than the logging interval.*",  # every epoch is logged, whatever its length
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6.6 under torch 2.13: nothing a user can change
    ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run continues
    ".*ended before the epoch ended and your dataloader is.*",  # litlab.training.loops brings it back to its place
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",  # it may: it shapes whatever data it gets
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_process(files: list[Path]) -> None:
    """Set log levels, warning filters, environment variables and the import path.

    To be called after the import of Lightning, which sets its log levels.

    Args:
        files: the configuration files; they tell where the project is.
    """
    # what Lightning and transformers report at every start is reported by litlab, or an advertisement
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        if transformers := sys.modules.get("transformers"):  # torchmetrics imports it
            transformers.logging.set_verbosity_error()
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # W&B's telemetry goes out even in offline mode, and delays the end by 20 seconds if the server does not answer
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # a config may name classes of the project's root folder, such as own.Model or those of a recipe
    root = find_project(files)
    if root and str(root) not in sys.path:
        sys.path.append(str(root))


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step: otherwise every large tensor costs its page faults again.

    Without glibc it does nothing. Sizes that vary leave gaps: the process needs more memory, by some hundred MB or more, and the C
    library longer to find room, which is why batches of texts and summaries have few shapes (project/data/summarization.py).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
