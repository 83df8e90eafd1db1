"""A callback that exports the network and its tokenizer at the end of training."""

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from litlab.errors import BadInput
from litlab.nn.sharding import is_sharded
from litlab.sources.pretrained import quiet_transformers


class PretrainedModel(Callback):
    """Writes the trained network and its tokenizer to model/ in the run directory at the end of training.

    The folder has the format of `save_pretrained`, and `--model.pretrained` can read it. The weights are stored as
    safetensors in bfloat16, half the size of float32. The LightningModule needs a `network` that is a transformers
    model, the data module needs a `tokenizer`, and the strategy must not shard the weights. The run directory is the
    trainer's `default_root_dir`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before training that the export will work.

        Raises:
            BadInput: if there is no such network or tokenizer, the weights are sharded, or model/ has other contents.
        """
        network = getattr(pl_module, "network", None)
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if not isinstance(network, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise BadInput(
                f"the callback PretrainedModel cannot export {type(pl_module).__name__}: it needs a transformers model as its network "
                "and data with a transformers tokenizer; remove the callback from trainer.callbacks."
            )
        if is_sharded(trainer):
            raise BadInput(
                f"the callback PretrainedModel cannot export weights that {type(trainer.strategy).__name__} shards: use "
                "trainer.strategy=auto or ddp."
            )
        folder = Path(trainer.default_root_dir) / "model"
        if folder.exists() and not (folder / "config.json").exists():
            raise BadInput(
                f"the callback PretrainedModel would replace {folder}, which does not contain a model: move it elsewhere."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder."""
        if not trainer.is_global_zero:
            return
        run = Path(trainer.default_root_dir)
        for remains in (run / "model", *run.glob(".model.*")):  # from before a resume, or from a process killed here
            shutil.rmtree(remains, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".model.", dir=run) as room:
            folder = Path(room) / "model"
            network: Any = deepcopy(pl_module.network)
            with quiet_transformers():
                network.to(torch.bfloat16).save_pretrained(folder)
            trainer.datamodule.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
            folder.rename(run / "model")
