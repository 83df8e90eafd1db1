"""What a pretraining leaves for others to start from."""

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
from litlab.training.checkpoints import BestCheckpoint


class PretrainedModel(Callback):
    """Writes the network, as it is when the training ends, and its tokenizer into model/ of the run directory.

    The folder is what `save_pretrained` writes and `--model.pretrained` takes: weights in safetensors, in bfloat16, which
    halves their size. It needs a module whose `network` is a model of transformers, data with a `tokenizer`, and a strategy
    that does not shard the weights.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be written, before hours of training.

        Raises:
            BadInput: if there is no such network or tokenizer, or the weights are sharded.
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder."""
        if not trainer.is_global_zero:
            return
        best = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint))
        run = Path(str(best.dirpath)).parent
        for remains in (run / "model", *run.glob(".model.*")):  # of a training that was killed in here
            shutil.rmtree(remains, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".model.", dir=run) as room:
            folder = Path(room) / "model"
            network: Any = deepcopy(pl_module.network)
            network.to(torch.bfloat16).save_pretrained(folder)
            trainer.datamodule.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
            folder.rename(run / "model")
