"""lmcli: from raw text to a trained, sampled and measured Transformer language model."""

__version__ = "0.1.0"

# The command line that is being run, for what it makes; commands may run one another.
invocation: list[str] = ["lmcli"]
