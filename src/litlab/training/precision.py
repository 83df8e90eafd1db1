"""The precision of a training, and gradient clipping under bfloat16."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import Optimizer

NATIVE_BF16_ON_CPU = ("avx512_bf16", "amx_bf16")


def device_type(accelerator: Any) -> str:
    """Return the device type that Lightning's `accelerator` selects on this machine: "cuda", "mps" or "cpu"."""
    name = str(accelerator).lower()
    if name in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if name in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_precision(device: str) -> tuple[str, str]:
    """Return Lightning's name of the precision for a device, and the reason: bfloat16 if the hardware supports it.

    bfloat16 needs no loss scaling, and its matrix products are several times faster than those of float32. Emulated
    bfloat16 is slower than float32.

    Args:
        device: "cuda", "mps" or "cpu".
    """
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU has bfloat16"
        return "32-true", "the GPU has no native bfloat16"
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if found := [name for name in NATIVE_BF16_ON_CPU if capabilities.get(name)]:
            return "bf16-mixed", f"the CPU has {found[0].upper().replace('_', '-')}"
        return "32-true", "the CPU has no native bfloat16"
    return "32-true", f"bfloat16 on {device} was not measured"


class Bf16Mixed(MixedPrecision):
    """bfloat16 autocast without two limitations of Lightning 2.6.6.

    - Lightning raises an error if the gradients of a fused optimizer are clipped (issue 21435). The limitation applies
      only to scaled float16 gradients; bfloat16 needs no scaling.
    - Lightning disables the cache of autocast (issue 21611). Without the cache, each weight is cast at every use, in a
      decoder once per generated token.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def clip_gradients(self, optimizer: Optimizer, clip_val: int | float = 0.0, *args: Any, **kwargs: Any) -> None:
        """Clip the gradients as Lightning does for float32."""
        super(MixedPrecision, self).clip_gradients(optimizer, clip_val, *args, **kwargs)

    def autocast_context_manager(self) -> torch.autocast:
        """Return an autocast context that caches cast weights until the context ends."""
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=True)
