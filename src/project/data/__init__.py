"""One LightningDataModule per file, and the data sets that they know by name."""
