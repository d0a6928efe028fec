"""How raw text becomes documents and splits."""

from dataclasses import dataclass

from lmcli.config.fields import option
from lmcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """What counts as one document, and what happens to text that cannot be read."""

    document: str = option(
        "file", "a document is a whole file, a line or a block", choices=("file", "line", "block")
    )
    text_key: str = option("text", "field of a JSONL record that holds the text")
    on_error: str = option("fail", "documents that cannot be read", choices=("fail", "skip"))


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How documents are dealt into train, val and test."""

    val_fraction: float = option(0.05, "share of documents for validation", low=0, high=0.9)
    test_fraction: float = option(0.05, "share of documents for testing", low=0, high=0.9)
    split_by: str = option(
        "auto",
        "by document hash, or by position (auto: by position below 20 documents)",
        choices=("auto", "hash", "position"),
    )

    def __post_init__(self) -> None:
        if self.val_fraction + self.test_fraction > 0.95:
            raise UsageError("--val-fraction and --test-fraction leave less than 5% for training")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer trained on text."""

    algorithm: str = option("bpe", "byte-level byte-pair encoding", choices=("bpe",))
    vocab_size: int | None = option(
        None,
        "tokens, special ones included [8192 or what the text supports]",
        low=1,
        high=2**22,
        unit="count",
    )
