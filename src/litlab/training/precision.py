"""Which number format a training uses, and gradient clipping that works with it."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import Optimizer

NATIVE_BF16_ON_CPU = ("avx512_bf16", "amx_bf16")


def device_type(accelerator: Any) -> str:
    """The device that Lightning's `accelerator` argument leads to here: "cuda", "mps" or "cpu"."""
    wanted = str(accelerator).lower()
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_precision(device: str) -> tuple[str, str]:
    """The precision that the hardware is good at, as Lightning names it, and the reason in a few words.

    bfloat16 needs no loss scaling and is several times faster in matrix products, but only where the hardware has it:
    emulated it is slower than float32.
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
    """bfloat16 autocast without two limits of Lightning 2.6.6.

    Lightning refuses to clip gradients if the optimizer is fused (its issue 21435), which is right for scaled float16
    gradients only: bfloat16 has no scaler. And it re-casts every weight at every use because it switches autocast's
    cache off (its issue 21611), so that a decoder casts its weights once per generated token.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def clip_gradients(self, optimizer: Optimizer, clip_val: int | float = 0.0, *args: Any, **kwargs: Any) -> None:
        """Clip as Lightning does for float32."""
        super(MixedPrecision, self).clip_gradients(optimizer, clip_val, *args, **kwargs)

    def autocast_context_manager(self) -> torch.autocast:
        """Autocast that keeps the cast weights until it is left."""
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=True)
