"""How checkpoints reach the disk and come back."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from litlab.errors import explain_full_disk
from litlab.files import open_atomically
from litlab.runs import checkpoint as checkpoint_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and moves it there when it is complete; reads tensors and plain values only.

    Lightning writes to the system's temporary folder and moves from there, which is a copy, and can be cut short, when
    that folder is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace the file at `path` in one step.

        Raises:
            BadInput: if the disk is full; the checkpoint that was there is intact.
        """
        target = Path(path)
        target.parent.mkdir(exist_ok=True)  # not its parents: a run directory that has vanished stays so
        with explain_full_disk(target.parent, "writing a checkpoint", "LITLAB_RUNS"), open_atomically(target) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without running any code that it may hold.

        Raises:
            BadInput: if the file is damaged, is not a checkpoint, or holds other objects than tensors and plain values.
        """
        return checkpoint_file.read(path, map_location)
