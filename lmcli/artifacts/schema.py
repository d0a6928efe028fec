"""What every JSON that lmcli reads back must look like, checked on reading, so that no code behind
need doubt it: hashes find corruption, not what a broken or malicious writer sealed.

A schema is a type, None, (one, or, another), [item], [first, second], {str: item} for any names, or
{"name": item, "optional?": item}, beside which other names may stand. `int` is a whole number from
0 below 2^63, as all of ours are, a range another one; `float` is any finite number.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from lmcli.errors import DataError

T = TypeVar("T")
ANY = {str: object}
NONE = {str: ()}
FILE: Any = {"bytes": int, "sha256": str}
NAMED: Any = {"name": str, "id": str}
COUNTS = {"documents": int, "tokens": int, "bytes": int, "words": int}
COUNTS |= {"source_tokens?": int, "source_bytes?": int}
BEST = {"step": int, "val_loss?": float}  # or the metric that best_by names

MANIFEST: Any = {"format": int, "kind": str, "name": str, "id": str, "parents": {str: str}}
MANIFEST |= {"files": {str: FILE}, "made": {"command": [str], "time": str}}
MANIFEST |= {"config": {"sources?": {str: [FILE | {"path": str}]}}}
KINDS: Any = {  # what else a manifest of this kind says
    "tokenizer": {"config": {"reached_vocab_size": int, "exact?": bool}},
    "dataset": {
        "parents": {"tokenizer": str},
        "config": {"vocab_size": int, "eos_id": int, "order": str, "split_rule": str}
        | {"splits": {"train": COUNTS, "val?": COUNTS, "test?": COUNTS}}
        | {"form?": str, "dropped?": {str: int}, "chat_template?": {str: str}, "chat?": bool},
    },
    "run": {"parents": {"tokenizer": str}},
    "checkpoint": {"parents": {"run": str}},
}
CONFIG: Any = {"model": ANY, "training": ({"steps": int}, NONE)}
CONFIG |= {"data": (NAMED, NONE), "origin?": NAMED, "tuning?": ANY}
STATUS: Any = {"run_id": str, "state": str, "step": int, "steps": int, "exit": (int, None)}
STATUS |= {"reason": str, "resumable": bool, "logs": {str: FILE}}
INDEX = {"last": int, "best": (int, None)}
STATE: Any = {"step": int, "tokens": int, "metrics_bytes": int, "metrics_sha256": str}
STATE |= {"best": (BEST, None), "recent?": [[float, float]]}
EVAL: Any = {"run_id": str, "checkpoint": {"step": int, "id": str}, "settings": ANY}
EVAL |= {"dataset": NAMED | {"split": str}}
EVAL |= {"scores": [{"name": str, "value": float, "signature": str}]}
VALIDATED: Any = {"step": int, "val_loss?": float, "val_bits_per_byte?": float}
LOGS: Any = {
    "metrics.jsonl": VALIDATED | {"tokens?": int, "loss?": float},
    "perf.jsonl": VALIDATED | {"seconds": float, "tokens_per_second?": float},
    "events.jsonl": (
        *({"step": int, "change": ANY}, {"step": int, "skip": str}),
        {"step": int, "rewind": range(2**31)},  # batches, which are counted in int64
    ),
}


def check(value: T, schema: Any, where: Path | str) -> T:
    """`value`, or a DataError that names `where` it was read and what in it does not fit."""
    wrong = misfit(value, schema)
    if wrong is not None:
        what = f"{wrong[1:80]!r} is " if wrong else ""
        raise DataError(f"{where}: {what}not what lmcli writes there; restore or rebuild it")
    return value


def misfit(value: Any, schema: Any) -> str | None:
    """Where a value leaves its schema first, as `.name.name`; None where it fits."""
    if isinstance(schema, tuple):
        return None if any(misfit(value, one) is None for one in schema) else ""
    if not isinstance(schema, dict | list):
        return None if _is(value, schema) else ""
    of_length = isinstance(schema, list) and len(schema) > 1
    if not isinstance(value, type(schema)) or (of_length and len(value) != len(schema)):
        return ""
    for name, item, inner in _parts(value, schema):
        where = misfit(item, inner)
        if where is not None:
            return f".{name}{where}"
    return None


def _parts(value: Any, schema: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(name, item, schema) of what is in a list or object, or ought to be: `...` fits nothing."""
    if isinstance(schema, list):
        for i, item in enumerate(value):
            yield i, item, schema[i % len(schema)]
    elif str in schema:
        for name, item in value.items():
            yield name, item, schema[str]
    else:
        for key, inner in schema.items():
            name = key.removesuffix("?")
            if name in value or name == key:
                yield name, value.get(name, ...), inner


def _is(value: Any, kind: Any) -> bool:
    if kind is int:
        kind = range(2**63)
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind or type(None))
