"""Process-wide settings that a command makes at its start. Importing litlab or project does not change them."""

import ctypes
import logging
import os
import sys
import warnings
from pathlib import Path

from litlab.cli.settings import find_project

IGNORED_WARNINGS = (
    ".*smaller than the logging interval.*",  # litlab logs every epoch, whatever its length
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6.6 with torch 2.13: users cannot change it
    ".*Checkpoint directory .* exists and is not empty.*",  # always true when a run continues
    ".*ended before the epoch ended and your dataloader is.*",  # litlab.training.loops restores its position
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",  # intended: the model shapes any batches
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_process(files: list[Path]) -> None:
    """Set log levels, warning filters, environment variables and the import path.

    Call it after Lightning is imported, because the import sets log levels.

    Args:
        files: the configuration files, from which the project's folder is found.
    """
    # at every start Lightning and transformers print what litlab prints already, and advertisements
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        if transformers := sys.modules.get("transformers"):  # torchmetrics has imported it
            transformers.logging.set_verbosity_error()
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # W&B sends telemetry even in offline mode; if its server does not answer, the process ends 20 seconds later
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # a configuration may name classes in the project's root folder, such as own.Model or those of a recipe
    root = find_project(files)
    if root and str(root) not in sys.path:
        sys.path.append(str(root))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; otherwise each large tensor causes page faults in every step.

    Without glibc this does nothing. Tensors of many sizes fragment the memory: the process then needs some hundred MB
    more, and allocation is slower. Therefore batches of texts and summaries have few shapes
    (project/data/summarization.py).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
