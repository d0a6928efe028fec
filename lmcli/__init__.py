"""lmcli: from raw text to a trained, sampled and measured Transformer language model."""

__version__ = "0.1.0"
