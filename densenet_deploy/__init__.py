"""DenseNet from training to verified, measured deployment."""

__version__ = "0.1.0"
