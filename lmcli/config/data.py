"""How raw text becomes documents and splits."""

import codecs
from dataclasses import dataclass

from lmcli.config.fields import option
from lmcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """What counts as one document, and what happens to text that cannot be read."""

    document: str = option(
        "file", "a document is a whole file, a line or a block", choices=("file", "line", "block")
    )
    text_key: str = option("text", "JSONL field or CSV/TSV column that holds the text")
    on_error: str = option("fail", "documents that cannot be read", choices=("fail", "skip"))
    format: str = option(
        "auto",
        "what the files hold (auto: by suffix; standard input is text)",
        choices=("auto", "text", "jsonl", "csv", "tsv"),
    )
    encoding: str = option("utf-8", "encoding of the files, such as latin-1 or utf-16")
    newlines: str = option(
        "keep", "line ends as they are, or CRLF and CR as LF", choices=("keep", "lf")
    )

    def __post_init__(self) -> None:
        try:
            "a".encode(self.encoding)
        except (LookupError, UnicodeError):
            raise UsageError(f"--encoding {self.encoding} is not one that Python knows") from None

    @property
    def is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name == "utf-8"

    @property
    def plain(self) -> bool:
        """Whether files are read as they are."""
        return self.is_utf8 and self.newlines == "keep"


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

    algorithm: str = option(
        "bpe",
        "how the vocabulary is learned; each gives back any text byte for byte",
        choices=("bpe", "unigram", "wordpiece", "char", "byte"),
    )
    vocab_size: int | None = option(
        None,
        "tokens, special ones included [8192 or what the text supports]",
        low=1,
        high=2**22,
        unit="count",
    )
    sample_bytes: int | None = option(
        None, "train on a random part of the text of this size (100MB) [all]", low=1, unit="bytes"
    )
    seed: int = option(0, "seed of the sample")
