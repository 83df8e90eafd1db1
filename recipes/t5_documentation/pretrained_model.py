"""Export the network and its tokenizer at the end of a training."""

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
    """Writes the network, as it is at the end of the training, and its tokenizer into model/ of the run directory.

    The folder is one of `save_pretrained`, which `--model.pretrained` reads: weights in safetensors, in bfloat16, which
    halves their size. It needs a module whose `network` is a model of transformers, data with a `tokenizer`, and a strategy
    that does not shard the weights. The run directory is the trainer's `default_root_dir`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be written, before hours of training.

        Raises:
            BadInput: if there is no such network or tokenizer, the weights are sharded, or model/ holds something else.
        """
        network = getattr(pl_module, "network", None)
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if not isinstance(network, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise BadInput(
                f"the callback PretrainedModel cannot write {type(pl_module).__name__}: it needs a network of transformers and data with "
                "their tokenizer; leave it out of trainer.callbacks."
            )
        if is_sharded(trainer):
            raise BadInput(
                f"the callback PretrainedModel cannot write weights that {type(trainer.strategy).__name__} shards: use "
                "trainer.strategy=auto or ddp."
            )
        folder = Path(trainer.default_root_dir) / "model"
        if folder.exists() and not (folder / "config.json").exists():
            raise BadInput(
                f"the callback PretrainedModel would replace {folder}, which holds no model: move it elsewhere."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder."""
        if not trainer.is_global_zero:
            return
        run = Path(trainer.default_root_dir)
        for remains in (run / "model", *run.glob(".model.*")):  # of a training that was killed here, or is continued
            shutil.rmtree(remains, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".model.", dir=run) as room:
            folder = Path(room) / "model"
            network: Any = deepcopy(pl_module.network)
            with quiet_transformers():
                network.to(torch.bfloat16).save_pretrained(folder)
            trainer.datamodule.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
            folder.rename(run / "model")
