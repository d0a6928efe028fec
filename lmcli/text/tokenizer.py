"""Text to token ids and back: byte-level BPE in the Hugging Face file format.

Byte-level, so nothing is unknown and bytes(decode(encode(text))) == bytes of text. Text that spells
a special token encodes as text; only lmcli itself writes special ids.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import TokenizerConfig
from lmcli.errors import DataError, MissingInputError, UsageError
from lmcli.text.readers import Reader

SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>")
SMALLEST = len(SPECIAL) + 256
DEFAULT_VOCAB_SIZE = 8192
_LONG_WORD = re.compile(r"\S{4096}(?=\S)")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted: character -> byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    rest = [b for b in range(256) if b not in printable]
    return table | {chr(256 + i): b for i, b in enumerate(rest)}


def _without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut inside words of thousands of letters: learning takes their length squared."""
    for text in texts:
        start = 0
        for part in _LONG_WORD.finditer(text):
            yield text[start : part.end()]
            start = part.end()
        yield text[start:]


class Tokenizer:
    """A trained tokenizer; special ids are pad 0, bos 1, eos 2, sep 3 in our own ones."""

    def __init__(self, inner: HFTokenizer) -> None:
        self._inner = inner
        inner.encode_special_tokens = True
        ids: list[Any] = [inner.token_to_id(token) for token in SPECIAL]
        if None in ids:
            raise DataError(f"the tokenizer has no {SPECIAL[ids.index(None)]} token")
        self.pad_id, self.bos_id, self.eos_id, self.sep_id = ids

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        if not path.is_file():
            raise MissingInputError(f"{path}: no such tokenizer")
        data = path.read_bytes()
        try:
            return cls(HFTokenizer.from_buffer(data))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except BaseException as error:  # plain Exception for a bad file, or a panic of its own
            if isinstance(error, KeyboardInterrupt):
                raise
            raise DataError(f"{path}: not a tokenizer file ({error})") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int | None) -> "Tokenizer":
        """Byte-level BPE over GPT-2's pre-tokens (Sennrich et al. 2016; Radford et al. 2019).

        Without `vocab_size`: 8192, or fewer where the text supports no more merges.
        """
        if vocab_size is not None and vocab_size < SMALLEST:
            raise UsageError(
                f"--vocab-size {vocab_size} is too small: {SMALLEST} is the least "
                f"(256 bytes and {len(SPECIAL)} special tokens)"
            )
        inner = HFTokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size or DEFAULT_VOCAB_SIZE,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(_byte_alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(_without_long_words(texts), trainer)
        reached = inner.get_vocab_size()
        if vocab_size is not None and reached < vocab_size:
            raise DataError(
                f"--vocab-size {vocab_size} is out of reach: this text supports {reached} tokens; "
                "ask for that many or give more text"
            )
        return cls(inner)

    def to_bytes(self) -> bytes:
        """The content of tokenizer.json."""
        return str(self._inner.to_str(pretty=True)).encode()

    @property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """(id, first character, one past the last) of each token of a text."""
        encoded = self._inner.encode(text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(encoded.ids, encoded.offsets, strict=True)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """In parallel, in order."""
        encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        """The bytes of each token id; special tokens have none."""
        alphabet = _byte_alphabet()
        special = set(SPECIAL)
        table = [b""] * self.vocab_size
        for token, i in self._inner.get_vocab().items():
            if token not in special:
                table[i] = bytes(alphabet[c] for c in token)
        return table

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Exact bytes; special tokens vanish. An id outside the vocabulary is a DataError."""
        table, ids = self._bytes_of, list(ids)
        try:
            if ids and min(ids) < 0:
                raise IndexError
            return b"".join([table[i] for i in ids])
        except IndexError:
            raise DataError(f"a token id is outside the vocabulary of {len(table)}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text; bytes that are not UTF-8 (a cut character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """Tokens whose bytes hold a line feed."""
        return frozenset(i for i, b in enumerate(self._bytes_of) if b"\n" in b)


def build(
    path: Path, reader: Reader, config: TokenizerConfig, recorded: dict[str, Any]
) -> Manifest:
    """Trains the tokenizer `path`; the caller holds its lock. `recorded` goes into the manifest."""
    with console.Progress("reading", reader.size, "bytes") as progress:
        pieces = progress.over(reader.pieces(), lambda piece: piece.size)
        tokenizer = Tokenizer.train((piece.text for piece in pieces), config.vocab_size)
    reader.warn_of_skipped()
    made = {**recorded, "reached_vocab_size": tokenizer.vocab_size, "skipped": reader.skipped}
    with files.staged_directory(path) as folder:
        files.write_file(folder / layout.TOKENIZER, tokenizer.to_bytes())
        return manifest.write(folder, "tokenizer", path.name, config=made)
