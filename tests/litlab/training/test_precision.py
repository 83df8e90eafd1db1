import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from litlab.training import precision
from litlab.training.precision import Bf16Mixed


class FusedModel(BoringModel):
    """A model with large gradients and a fused optimizer."""

    def training_step(self, batch, batch_idx):
        return self.layer(batch).float().pow(2).sum() * 1e3

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)

    def on_before_zero_grad(self, optimizer) -> None:
        if self.layer.weight.grad is not None:
            self.norm = torch.cat([p.grad.flatten() for p in self.parameters()]).norm()


def train(plugin: Bf16Mixed, folder, **options) -> FusedModel:
    model = FusedModel()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    Trainer(
        accelerator="cpu", plugins=plugin, max_steps=2, limit_val_batches=0, default_root_dir=folder, **quiet, **options
    ).fit(model)
    return model


def test_gradients_are_clipped_under_bf16_with_a_fused_optimizer(tmp_path) -> None:
    assert train(Bf16Mixed("cpu"), tmp_path).norm > 10
    assert train(Bf16Mixed("cpu"), tmp_path, gradient_clip_val=0.5).norm == pytest.approx(0.5, rel=1e-3)


def test_autocast_caches_the_cast_weights() -> None:
    layer = torch.nn.Linear(8, 8)
    with Bf16Mixed("cpu").forward_context():
        assert torch.is_autocast_cache_enabled()
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx2": True, "avx512_bf16": False}, "32-true"),
    ],
)
def test_a_cpu_uses_bf16_only_where_it_is_native(capabilities, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.choose_precision("cpu")[0] == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_uses_bf16_only_where_it_is_native(native, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert precision.choose_precision("cuda")[0] == expected
