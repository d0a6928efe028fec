"""Text to token ids and back, in the Hugging Face file format.

Our own tokenizers are exact: bytes(decode(encode(text))) == bytes of text. Imported ones may lose
something, which `lmcli.text.compression` measures. Text that spells a special token encodes as
text; only lmcli itself writes special ids.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import TokenizerConfig
from lmcli.errors import DataError, MissingInputError
from lmcli.text.algorithms import BYTE_OF, SPECIAL, learn
from lmcli.text.readers import Reader
from lmcli.text.sampling import sample

ROLES = ("pad", "bos", "eos", "sep")
OWN = dict(zip(ROLES, SPECIAL, strict=True))
MOST_IDS = 2**24


class Tokenizer:
    """A tokenizer and the ids of its special tokens: pad 0, bos 1, eos 2, sep 3 in our own ones.

    `roles` says which token is what in an imported one; its `added_tokens` carry it in the file.
    Only `sep` may be missing there.
    """

    def __init__(self, inner: HFTokenizer, roles: Mapping[str, str] = OWN) -> None:
        self._inner, self.roles = inner, dict(roles)
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self.spells_bytes = bool(inner.decoder) and b"ByteLevel" in inner.decoder.__getstate__()
        ids: dict[str, Any] = {r: inner.token_to_id(token) for r, token in self.roles.items()}
        for role, i in ids.items():
            if i is None:
                raise DataError(f"the tokenizer has no {self.roles[role]} token")
        self.pad_id, self.bos_id, self.eos_id = (ids[role] for role in ROLES[:3])
        self.sep_id: int | None = ids.get("sep")
        self.vocab_size = 1 + max(inner.get_vocab().values())
        if self.vocab_size > MOST_IDS:  # tables have a place for each
            raise DataError(f"a token has the id {self.vocab_size - 1}; ids end at {MOST_IDS - 1}")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        if not path.is_file():
            raise MissingInputError(f"{path}: no such tokenizer")
        data = path.read_bytes()
        try:
            added = json.loads(data)["added_tokens"]
            roles = {role: token["content"] for token in added for role in token.get("roles", ())}
            return cls(HFTokenizer.from_buffer(data), roles or OWN)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the library's for a bad file; its panic is no Exception
            raise DataError(f"{path}: not a tokenizer file ({error})") from None

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int | None, algorithm: str = "bpe"
    ) -> "Tokenizer":
        """Without `vocab_size`: 8192, or fewer where the text supports no more."""
        return cls(learn(texts, algorithm, vocab_size))

    def to_bytes(self) -> bytes:
        """The content of tokenizer.json."""
        text = str(self._inner.to_str(pretty=True))
        if self.roles != OWN:
            value = json.loads(text)
            for token in value["added_tokens"]:
                token["roles"] = [r for r, name in self.roles.items() if name == token["content"]]
            text = json.dumps(value, indent=2, ensure_ascii=False)
        return text.encode()

    def token(self, i: int) -> str:
        """How a token is spelled in tokenizer.json."""
        return str(self._inner.id_to_token(i))

    @cached_property
    def exact(self) -> bool:
        """Whether any text comes back as it was; tried on what tokenizers are known to change."""
        text = "a  B.\n\n\t ##c\u212b e\u0301 don't" + "".join(map(chr, range(0x250)))
        return (
            self.spells_bytes
            and BYTE_OF.keys() <= self._inner.get_vocab().keys()
            and self._inner.normalizer is None
            and self.decode_bytes(self.encode(text)) == text.encode()
        )

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids that text never becomes, by spelling; those with a role also as `<role>`."""
        added = self._inner.get_added_tokens_decoder().items()
        ids = {token.content: i for i, token in added if token.special}
        return ids | {f"<{role}>": ids[token] for role, token in self.roles.items() if token in ids}

    def spell(self, ids: Iterable[int]) -> bytes:
        """`decode_bytes`, with special tokens as they are spelled."""
        known = set(self.special.values())
        runs = itertools.groupby(ids, key=known.__contains__)
        return b"".join(
            "".join(map(self.token, run)).encode() if is_special else self.decode_bytes(run)
            for is_special, run in runs
        )

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """(id, first character, one past the last) of each token of a text."""
        encoded = self._inner.encode(text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(encoded.ids, encoded.offsets, strict=True)]

    @cached_property
    def unknown_id(self) -> Any:
        """What the vocabulary does not have becomes this; in our own, nothing does."""
        model = json.loads(self._inner.to_str())["model"]
        return model.get("unk_id", self._inner.token_to_id(model.get("unk_token") or ""))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """In parallel, in order."""
        encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    def _spell(self, token: str, i: int) -> bytes:
        if not self.spells_bytes:
            return str(self._inner.decode([i])).encode()
        token = token.removeprefix(
            getattr(self._inner.model, "continuing_subword_prefix", "") or ""
        )
        return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in token)

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        """The bytes of each token id; special tokens have none."""
        added = self._inner.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for token, i in self._inner.get_vocab().items():
            if i not in added:
                table[i] = self._spell(token, i)
            elif not added[i].special:
                table[i] = token.encode()
        return table

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Exact bytes; special tokens vanish. An id outside the vocabulary is a DataError.

        A tokenizer that does not spell in bytes is decoded by the library, as text.
        """
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError(f"a token id is outside the vocabulary of {self.vocab_size}")
        if not self.spells_bytes:
            return str(self._inner.decode(ids)).encode()
        table = self._bytes_of
        return b"".join([table[i] for i in ids])

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
        texts = sample((piece.text for piece in pieces), config.sample_bytes, config.seed)
        tokenizer = Tokenizer.train(texts, config.vocab_size, config.algorithm)
    reader.warn_of_skipped()
    return write(path, tokenizer, {**recorded, "skipped": reader.skipped})


def write(path: Path, tokenizer: Tokenizer, recorded: dict[str, Any]) -> Manifest:
    """The artifact; `exact` in its manifest promises that any text comes back."""
    made = {**recorded, "reached_vocab_size": tokenizer.vocab_size, "exact": tokenizer.exact}
    with files.staged_directory(path) as folder:
        files.write_file(folder / layout.TOKENIZER, tokenizer.to_bytes())
        return manifest.write(folder, "tokenizer", path.name, config=made)
