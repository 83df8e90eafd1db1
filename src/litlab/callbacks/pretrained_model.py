"""What a pretraining leaves for others to start from."""

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class PretrainedModel(Callback):
    """Writes the network and its tokenizer into model/ of the run directory when the training ends.

    The folder is what `save_pretrained` writes and `--model.pretrained` takes: weights in safetensors, in bfloat16, which
    halves their size. It needs a module whose `network` is a model of transformers, data with a `tokenizer`, and a strategy
    that does not shard the weights.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder."""
        if not trainer.is_global_zero:
            return
        run = Path(trainer.checkpoint_callback.dirpath).parent  # type: ignore[union-attr]
        with tempfile.TemporaryDirectory(prefix=".model.", dir=run) as room:
            folder = Path(room) / "model"
            network: Any = deepcopy(pl_module.network)
            network.to(torch.bfloat16).save_pretrained(folder)
            trainer.datamodule.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
            shutil.rmtree(run / "model", ignore_errors=True)  # of a training that was killed behind this point
            folder.rename(run / "model")
