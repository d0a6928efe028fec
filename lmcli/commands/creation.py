"""What the commands that make an artifact out of text share: their flags and their course."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcli import console
from lmcli.artifacts import files, layout
from lmcli.artifacts.again import creating, finished
from lmcli.artifacts.manifest import Manifest
from lmcli.commands import options
from lmcli.config.data import ReadConfig
from lmcli.config.fields import pick

if TYPE_CHECKING:
    from lmcli.text.readers import Reader


@dataclass(frozen=True)
class Creation:
    """The shared flags of one such command."""

    given: dict[str, Any]
    exclude: tuple[str, ...]
    force: bool
    root: Path
    as_json: bool

    def make(
        self,
        kind: str,
        path: Path,
        config: Mapping[str, Any],
        inputs: Mapping[str, Sequence[str]],
        build: Callable[[dict[str, "Reader"], dict[str, Any]], Manifest],
        parents: Mapping[str, str] | None = None,
    ) -> Manifest:
        """`build(readers, recorded)` unless `path` was made from the same config, text and parents.

        `inputs` are the files of each split; `-` among them is standard input.
        """
        from lmcli.text.readers import Reader
        from lmcli.text.sources import fingerprint

        read = pick(ReadConfig, self.given)
        with creating(path, self.root, kind, self.force), _spooled(path, inputs) as names:
            readers = {s: Reader(names[s], read, self.exclude) for s in names if names[s]}
            sources = {split: fingerprint(reader.paths) for split, reader in readers.items()}
            recorded = {**config, "sources": sources}
            made = finished(path, kind, recorded, dict(parents or {}))
            if made:
                console.say(f"{kind} {path.name} is there already, made from the same text")
            else:
                made = build(readers, recorded)
        if self.as_json:
            console.answer_json(summary(path.name, made))
        return made


@contextmanager
def _spooled(path: Path, inputs: Mapping[str, Sequence[str]]) -> Iterator[dict[str, list[str]]]:
    """The inputs with standard input in a file for the time being: it is read more than once.

    The caller holds the lock of `path`; what a killed process left is overwritten by the next one.
    """
    spool = layout.spool(path)
    try:
        if any("-" in names for names in inputs.values()):
            stream = files.Stream(spool)
            while data := sys.stdin.buffer.read(files.Stream.BUFFER):
                stream.write(data)
            stream.flush()
        yield {s: [str(spool) if n == "-" else n for n in names] for s, names in inputs.items()}
    finally:
        files.remove(spool)


def creation_flags(*classes: type) -> options.Decorator:
    """The flags behind a Creation, which the command gets as `creation`."""
    own = [field.name for field in dataclasses.fields(Creation)]
    shared = (options.exclude_option, options.force_option, options.common)
    creation = options.gathered("creation", own, Creation)
    return options.family(options.settings(*classes, file=True), *shared, creation)


def summary(name: str, made: Manifest) -> dict[str, Any]:
    """An artifact as JSON for people: what it was made with, without the list of its sources."""
    config = {key: value for key, value in made.config.items() if key != "sources"}
    return {"name": name, "id": made.id, **config}
