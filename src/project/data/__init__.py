"""One LightningDataModule per file, and the packaged data sets that they can load by name."""
