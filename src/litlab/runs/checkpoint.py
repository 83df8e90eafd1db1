"""Reading a checkpoint file: every byte checked, and no code that it may hold is run. torch is imported when one is read."""

import zipfile
from pathlib import Path
from typing import Any

from litlab.errors import BadInput, one_line

PARTS = {"state_dict", "global_step", "pytorch-lightning_version"}  # of any checkpoint


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training, after comparing every byte with the checksums that torch does not look at.

    Raises:
        BadInput: if the file is missing, damaged or not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise BadInput(f"{path} is not a file: a run or one of the .ckpt files in its checkpoints/ is right.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises five kinds for a directory of the archive that is damaged
        reason = one_line(str(error))[:100]
        raise BadInput(f"{path} is damaged ({reason}): use another checkpoint, or a copy of this one.") from error
    if damaged:
        reason = f"the checksum of {one_line(damaged)[:100]} is wrong"
        raise BadInput(f"{path} is damaged ({reason}): use another checkpoint, or a copy of this one.")
    content = read(path)
    if missing := PARTS - content.keys():
        raise BadInput(
            f"{path} is no checkpoint of a training: it lacks {', '.join(sorted(missing))}; choose another one."
        )
    return content


def read(path: Any, map_location: Any = None) -> dict[str, Any]:
    """Read the mapping that a checkpoint file holds.

    Args:
        path: the file.
        map_location: where its tensors go, as torch.load takes it; None: the CPU.

    Raises:
        BadInput: if the file is damaged, is not a checkpoint, or holds other objects than tensors and plain values.
    """
    import torch

    try:
        content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut short or holds code
        raise BadInput(
            f"{path} is not a checkpoint that can be loaded safely ({type(error).__name__}): it is damaged, or holds more than tensors."
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{path} is no checkpoint of a training: it holds a {type(content).__name__}; choose another one."
        )
    return content
