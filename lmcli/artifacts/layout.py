"""The only speller of file names in the artifact directory.

artifacts/
  tokenizers/<name>/   tokenizer.json  manifest.json
  datasets/<name>/     tokenizer.json  {train,val,test}.bin  .idx  manifest.json
                       of pairs: {train,val,test}.{source,target}.bin  .idx
  runs/<name>/         config.json  tokenizer.json  manifest.json  status.json  LOCK
                       metrics.jsonl  perf.jsonl  events.jsonl  evals/*.json
                       checkpoints/index.json
                       checkpoints/step-000500/{model,optimizer}.safetensors
                                               state.json manifest.json
"""

import os
import re
from pathlib import Path
from typing import Any

from lmcli.config.fields import suggest
from lmcli.errors import MissingInputError, UsageError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
STATUS = "status.json"
LOCK = "LOCK"
METRICS = "metrics.jsonl"
PERF = "perf.jsonl"
EVENTS = "events.jsonl"
CHECKPOINTS = "checkpoints"
INDEX = "index.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
EVALS = "evals"
EVALS_LOCK = ".lock"
RECIPE = ("stride", "max_tokens", "metrics", "outputs")  # settings that change a score
# What may lie in a run; a checkpoint's own manifest says what may lie in it.
_STEP = "step-([0-9]{6}|[1-9][0-9]{6,})"
RUN_FOLDERS = rf"checkpoints|evals|checkpoints/{_STEP}(/.*)?"
RUN_FILES = (
    r"LOCK|(manifest|config|tokenizer|status)\.json|(metrics|perf|events)\.jsonl"
    rf"|checkpoints/(index\.json|{_STEP}/.*)|evals/(\.lock|[^/]+\.json)"
)
SPLITS = ("train", "val", "test")
SIDES = ("source", "target")
FOLDERS = {"tokenizer": "tokenizers", "dataset": "datasets", "run": "runs"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def root(given: str | None) -> Path:
    """`--artifacts DIR`, else `$LMCLI_ARTIFACTS`, else `./artifacts`."""
    return Path(given or os.environ.get("LMCLI_ARTIFACTS") or "artifacts")


def is_path(reference: str) -> bool:
    return reference.startswith(("./", "../", "/"))


def new(root: Path, kind: str, reference: str) -> Path:
    """Where an artifact of `kind` called `reference` belongs."""
    name = Path(reference).name if is_path(reference) else reference
    name = name.removeprefix(FOLDERS[kind] + "/")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{reference!r} cannot be a name; use letters, digits, dot, dash and underscore"
        )
    return Path(reference) if is_path(reference) else root / FOLDERS[kind] / name


def find(root: Path, reference: str, kind: str | None = None) -> Path:
    """The existing artifact that `reference` (a name, `kind/name` or a path) means."""
    if is_path(reference):
        path = Path(reference)
        if not path.is_dir():
            raise MissingInputError(f"{reference}: no such folder")
        return path
    folder, slash, name = reference.rstrip("/").rpartition("/")
    places = [root / own for k, own in FOLDERS.items() if kind in (None, k) and folder in ("", own)]
    valid = _NAME.fullmatch(name) is not None
    found = [place / name for place in places if valid and (place / name).is_dir()]
    if not found:
        there = sorted({p.name for place in places for p in place.glob("[!.]*") if p.is_dir()})
        listing = f"; there are {', '.join(there[:8])}" if there else ""
        listing = suggest(name, there) or listing
        if slash and valid and Path(reference).is_dir():
            listing = f"; a path starts with ./ or /: ./{reference}"
        if not root.is_dir():
            listing = (
                f"; there is no folder {root} in {Path.cwd()}: go where it is, or name it by "
                "--artifacts or LMCLI_ARTIFACTS"
            )
        raise MissingInputError(
            f"no {kind or 'artifact'} called {reference!r} under {root}{listing}"
        )
    if len(found) > 1:
        choices = " or ".join(f"{p.parent.name}/{p.name}" for p in found)
        raise UsageError(f"{reference!r} names several artifacts; say {choices}")
    return found[0]


def side(split: str, name: str) -> str:
    """The files of one side of a split of pairs, `train.source`; of text, `train`."""
    return f"{split}.{name}".removesuffix(".")


def spool(directory: Path) -> Path:
    """Where standard input is kept while an artifact is made of it, under its lock."""
    return directory.with_name(f".tmp-{directory.name}~stdin")


def is_spool(path: Path) -> bool:
    return path.name.endswith("~stdin")


def creation_lock(directory: Path) -> Path:
    """The lock file of an artifact that may not exist yet."""
    return directory.with_name(f".lock-{directory.name}")


def checkpoint(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:06d}"


def eval_name(dataset: str, split: str, step: int, settings: dict[str, Any]) -> str:
    """The file of a run's result on a dataset (a reference) at a step; one for each recipe."""
    low = settings.get("dtype", "float32")
    recipe = [f"-{low}"] if low != "float32" else []
    recipe += [f"-{key.replace('_', '-')}-{settings[key]}" for key in RECIPE if settings.get(key)]
    return f"{Path(dataset).name}-{split}-step-{step:06d}{''.join(recipe)}.json"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint's folder, or None for anything else."""
    match = re.fullmatch(_STEP, path.name)
    return int(match[1]) if match else None


def list_steps(run: Path) -> list[int]:
    """Steps that have a checkpoint's folder, oldest first, valid or not."""
    folder = run / CHECKPOINTS
    folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(step for step in map(step_of, folders) if step is not None)
