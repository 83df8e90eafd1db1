"""Where data comes from and how it becomes batches: one LightningDataModule per file."""
