"""Writes and reads checkpoint files."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from litlab.errors import explain_full_disk
from litlab.files import open_atomically
from litlab.runs import checkpoint as checkpoint_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and loads only tensors and plain values.

    It writes a temporary file in the target folder and renames it. Lightning writes to the system's temporary folder
    and moves the file. If that folder is on another disk, the move is a copy, and an interrupted copy is incomplete.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace the file at `path` atomically.

        Raises:
            BadInput: if the disk is full; the previous checkpoint stays intact.
        """
        target = Path(path)
        target.parent.mkdir(exist_ok=True)  # not the parents: do not create a removed run directory again
        with explain_full_disk(target.parent, "writing a checkpoint", "LITLAB_RUNS"), open_atomically(target) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without executing code from the file.

        Raises:
            BadInput: if the file is damaged, is not a checkpoint, or contains more than tensors and plain values.
        """
        return checkpoint_file.read(path, map_location)
