"""How raw text becomes documents and splits."""

import codecs
from dataclasses import dataclass

from lmcli.config.fields import choice, option
from lmcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """What counts as one document, and what happens to text that cannot be read."""

    document: str = choice(
        ("file", "line", "block"), "a document is a whole file, a line or a block"
    )
    text_key: str = option("text", "JSONL field or CSV/TSV column that holds the text")
    on_error: str = choice(("fail", "skip"), "documents that cannot be read")
    format: str = choice(
        ("auto", "text", "jsonl", "csv", "tsv"),
        "what the files hold (auto: by suffix; standard input is text)",
    )
    encoding: str = option("utf-8", "encoding of the files, such as latin-1 or utf-16")
    newlines: str = choice(("keep", "lf"), "line ends as they are, or CRLF and CR as LF")

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
class PairConfig:
    """Where a source and its target stand in a record, and which pairs are left out."""

    pairs: bool = option(
        False, "each record is a pair: fields prompt and completion, or a chat in messages"
    )
    source_key: str | None = option(
        None,
        "field or column of the source (several, by commas: joined by line ends; "
        "numbers: columns of a table without names)",
    )
    target_key: str | None = option(None, "field or column of the target")
    max_source_length: int = option(0, "drop pairs with more source tokens, <eos> included")
    max_target_length: int = option(0, "drop pairs with more target tokens, <eos> included")
    max_length_ratio: float = option(
        0.0, "drop pairs with a side that has more than X times the tokens of the other"
    )
    drop_duplicates: bool = option(False, "keep the first of equal pairs")

    def __post_init__(self) -> None:
        if (self.source_key is None) != (self.target_key is None):
            raise UsageError("--source-key and --target-key go together")

    @property
    def keys(self) -> tuple[list[str], list[str]] | None:
        """The fields of the source and those of the target, where they were named."""
        if self.source_key is None or self.target_key is None:
            return None
        return self.source_key.split(","), self.target_key.split(",")

    @property
    def by_number(self) -> bool:
        """Whether the fields are numbers of columns."""
        return bool(self.keys) and all(n.isdecimal() for names in self.keys or () for n in names)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How documents are dealt into train, val and test."""

    val_fraction: float = option(0.05, "share of documents for validation", high=0.9)
    test_fraction: float = option(0.05, "share of documents for testing", high=0.9)
    split_by: str = choice(
        ("auto", "hash", "position"),
        "by document hash, or by position (auto: by position below 20 documents)",
    )

    def __post_init__(self) -> None:
        if self.val_fraction + self.test_fraction > 0.95:
            raise UsageError("--val-fraction and --test-fraction leave less than 5% for training")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer trained on text."""

    algorithm: str = choice(
        ("bpe", "unigram", "wordpiece", "char", "byte"),
        "how the vocabulary is learned; each gives back any text byte for byte",
    )
    vocab_size: int | None = option(
        None, "tokens, special ones included [8192 or what the text supports]", low=1, high=2**22
    )
    sample_bytes: int | None = option(
        None, "train on a random part of the text of this size (100MB) [all]", low=1, unit="bytes"
    )
    seed: int = option(0, "seed of the sample")
