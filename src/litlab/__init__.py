"""litlab: a research project template on PyTorch Lightning."""

__version__ = "0.2.0"
