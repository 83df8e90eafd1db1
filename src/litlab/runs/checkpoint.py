"""Read checkpoint files: verify every byte, and run no code from them. torch is imported only when a file is read."""

import zipfile
from pathlib import Path
from typing import Any

from litlab.errors import BadInput, one_line

REQUIRED_KEYS = {"state_dict", "global_step", "pytorch-lightning_version"}  # in every Lightning checkpoint


def load(path: Path) -> dict[str, Any]:
    """Read a training checkpoint, and verify its checksums first, because torch does not.

    Raises:
        BadInput: if the file is missing, damaged or not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise BadInput(f"{path} is not a file: name a run, or one of the .ckpt files in its checkpoints/.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises five types of error for a damaged archive
        reason = one_line(str(error))[:100]
        raise BadInput(f"{path} is damaged ({reason}): use another checkpoint, or a copy of this one.") from error
    if damaged:
        reason = f"the checksum of {one_line(damaged)[:100]} is wrong"
        raise BadInput(f"{path} is damaged ({reason}): use another checkpoint, or a copy of this one.")
    content = read(path)
    if missing := REQUIRED_KEYS - content.keys():
        raise BadInput(
            f"{path} is not a training checkpoint: it lacks {', '.join(sorted(missing))}; choose another file."
        )
    return content


def read(path: Any, map_location: Any = None) -> dict[str, Any]:
    """Read the mapping in a checkpoint file.

    Args:
        path: the file.
        map_location: device of the tensors, as in torch.load; None: the CPU.

    Raises:
        BadInput: if the file is damaged, is not a checkpoint, or holds other objects than tensors and plain values.
    """
    import torch

    try:
        content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except Exception as error:  # torch raises many types of error for a truncated file or one with code
        raise BadInput(
            f"{path} is not a checkpoint that can be loaded safely ({type(error).__name__}): it is damaged, or holds more than tensors."
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{path} is not a training checkpoint: it holds a {type(content).__name__}; choose another file."
        )
    return content
