"""The dataset on disk: flat token ids, memory-mapped, and the offsets of documents.

<split>.bin  little-endian ids, uint16 if vocab_size <= 65536 else uint32; documents end in <eos>
<split>.idx  int64 cumulative offsets in tokens, first 0; idx[-1] * itemsize == size of .bin

Of pairs, <split>.source.bin and <split>.target.bin: pair i is document i of both.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmcli.artifacts import layout, manifest
from lmcli.artifacts.files import Stream
from lmcli.artifacts.manifest import Manifest
from lmcli.dataset import order
from lmcli.errors import DataError, MismatchError

COUNTS = ("documents", "tokens", "bytes", "words")  # of pairs: those of the targets
PAIR_COUNTS = (*COUNTS, "source_tokens", "source_bytes")


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


class StoreWriter:
    """Streams one split into a staged folder, which its owner makes durable."""

    def __init__(self, folder: Path, split: str, vocab_size: int, eos_id: int) -> None:
        self.vocab_size, self.eos_id = vocab_size, eos_id
        self.dtype = token_dtype(vocab_size)
        self.tokens = self.documents = 0
        self._bin = Stream(folder / f"{split}.bin")
        self._idx = Stream(folder / f"{split}.idx")
        self._idx.write(np.zeros(1, dtype="<i8").tobytes())

    def add(self, ids: list[int], ends_document: bool) -> None:
        """Appends ids; the last part of a document also closes it with `<eos>`."""
        array = np.asarray([*ids, self.eos_id] if ends_document else ids, dtype=np.int64)
        if len(array) and not 0 <= array.min() <= array.max() < self.vocab_size:
            raise DataError(f"token id {array.max()} outside the vocabulary of {self.vocab_size}")
        self._bin.write(array.astype(self.dtype).tobytes())
        self.tokens += len(array)
        if ends_document:
            self.documents += 1
            self._idx.write(np.asarray([self.tokens], dtype="<i8").tobytes())

    def close(self) -> None:
        self._bin.flush()
        self._idx.flush()


class TokenStore:
    """One split, read-only; the invariant between .bin and .idx is checked on opening."""

    def __init__(self, folder: Path, split: str, vocab_size: int) -> None:
        self.split, self.vocab_size = split, vocab_size
        self.bin, idx = folder / f"{split}.bin", folder / f"{split}.idx"
        dtype = token_dtype(vocab_size)
        try:
            index_size, size = idx.stat().st_size, self.bin.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{error.filename}: missing; rebuild the dataset") from None
        if not index_size or index_size % 8:
            raise DataError(f"{idx}: {index_size} bytes is not a list of offsets")
        self.offsets = np.asarray(np.memmap(idx, dtype="<i8", mode="r"))
        if self.offsets[0] != 0 or (self.offsets[1:] <= self.offsets[:-1]).any():
            raise DataError(f"{idx}: offsets do not rise from 0; corrupt")
        self.n_tokens, self.n_documents = int(self.offsets[-1]), len(self.offsets) - 1
        if size != (expected := self.n_tokens * dtype.itemsize):
            raise DataError(f"{self.bin}: {size} bytes, expected {expected}; truncated or changed")
        # an empty file cannot be mapped
        self.tokens = np.memmap(self.bin, dtype=dtype, mode="r") if size else np.zeros(0, dtype)

    def document(self, i: int) -> np.ndarray:
        """Ids of document i, its closing `<eos>` included."""
        start, end = self.offsets[i : i + 2]
        return self._known(self.tokens[start:end], start)

    def take(self, where: np.ndarray) -> np.ndarray:
        """The ids at these places, as int64."""
        return self._known(self.tokens[where], where).astype(np.int64)

    def _known(self, ids: np.ndarray, where: int | np.ndarray) -> np.ndarray:
        """`ids` from these places, or from one place on; a DataError for an unknown one."""
        if ids.size and int(ids.max()) >= self.vocab_size:
            bad = int(np.flatnonzero(ids >= self.vocab_size)[0])
            place = int(np.ravel(where)[bad] if np.ndim(where) else where + bad)
            document = int(np.searchsorted(self.offsets, place, side="right")) - 1
            raise DataError(
                f"{self.bin}: token id {ids.flat[bad]} is outside the vocabulary of "
                f"{self.vocab_size}, in document {document} at token {place} of the file; "
                "corrupt, rebuild the dataset"
            )
        return ids

    def check_ids(self, eos_id: int) -> None:
        """Reads every id; DataError when one is outside the vocabulary, or when a document does
        not end in `eos_id`."""
        for start in range(0, self.n_tokens, 2**24):
            self._known(self.tokens[start : start + 2**24], start)
        for start in range(1, len(self.offsets), 2**20):
            wrong = self.tokens[self.offsets[start : start + 2**20] - 1] != eos_id
            if wrong.any():
                document = start - 1 + int(wrong.argmax())
                raise DataError(f"{self.bin}: document {document} does not end in <eos>; corrupt")


@dataclass(frozen=True)
class Dataset:
    """A built dataset: its manifest and the splits it has.

    Of pairs, `splits` are the targets and `sources` what they belong to; of text, `sources` is
    empty.
    """

    path: Path
    manifest: Manifest
    splits: dict[str, TokenStore]
    sources: dict[str, TokenStore] = dataclasses.field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        return int(self.manifest.config["vocab_size"])

    @classmethod
    def open(cls, path: Path, hashes: bool = False) -> "Dataset":
        """Raises DataError (incomplete, truncated; with `hashes` any change) or MismatchError."""
        found = manifest.read(path, "dataset", hashes)
        if found.config["order"] not in (order.NAME, order.OF_PAIRS):
            raise MismatchError(
                f"{path}: this lmcli does not know its order; upgrade or rebuild it"
            )
        sides = layout.SIDES if found.config.get("form") == "pairs" else ("",)
        names = [s for s in layout.SPLITS if s in found.config["splits"]]
        vocab_size, splits, sources = found.config["vocab_size"], {}, {}
        for split in names:
            stores = [TokenStore(path, layout.side(split, i), vocab_size) for i in sides]
            source, target = stores[0], stores[-1]
            if source.n_documents != target.n_documents:
                raise DataError(
                    f"{target.bin}: {target.n_documents} targets to {source.n_documents} sources; "
                    "rebuild the dataset"
                )
            splits[split], sources[split] = target, source
        return cls(path, found, splits, sources if len(sides) > 1 else {})


def format_problems(path: Path) -> list[str]:
    """What is wrong with a dataset although its hashes hold: a writer's bug, not a disk's."""
    problems = []
    try:
        dataset = Dataset.open(path)
    except DataError as error:
        return [str(error)]
    for store in (*dataset.sources.values(), *dataset.splits.values()):
        try:
            store.check_ids(dataset.manifest.config["eos_id"])
        except DataError as error:
            problems.append(str(error))
    return problems
