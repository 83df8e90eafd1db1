"""The place in the data, restored with a checkpoint."""

from lightning.pytorch import Callback, LightningModule, Trainer


class LoaderStates(Callback):
    """Gives the train dataloader the state that its checkpoint holds.

    Lightning 2.6.6 does so itself, unless the dataloader was made before the checkpoint was read, as it is when
    `configure_optimizers` asks for the number of steps: then the state is dropped and the epoch begins again.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over a state that is still waiting; the first batch has not been asked for yet."""
        trainer.fit_loop._load_combined_loader_states()
