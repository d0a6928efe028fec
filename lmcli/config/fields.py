"""What a config field is: one place for its type, default, help, choices and limits.

Flags, environment, TOML and config.json all pass through `build`, so an unknown key or a bad value
reads the same wherever it came from. Values keep the precedence
flag > environment (`LMCLI_STEPS`) > `--config file.toml` > default.
"""

import dataclasses
import difflib
import math
import os
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lmcli.config import units
from lmcli.errors import LmcliError, MissingInputError, UsageError

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = 0,
    high: float | None = None,
    unit: str = "",
) -> Any:
    """A dataclass field. Numbers are at least `low`: 0, as most count or measure something.

    A whole number is written as a count (10k, 10M) unless its `unit` is `bytes` (10MB, 2GiB); text
    whose `unit` is `duration` is one (10min).
    """
    meta = {"help": help, "choices": choices, "low": low, "high": high, "unit": unit}
    return dataclasses.field(default=default, metadata=meta)


def choice(words: tuple[str, ...], help: str) -> Any:
    """A dataclass field that is one of some words, the first by default."""
    return option(words[0], help, choices=words)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def kind(field: "dataclasses.Field[Any]") -> type:
    """The plain type of a field: int, float, str or bool (`int | None` counts as int)."""
    plain: type = (typing.get_args(field.type) or (field.type,))[0]
    return plain


def convert(field: "dataclasses.Field[Any]", value: Any, where: str) -> Any:
    """`value` (text or TOML/JSON value) as the field's type, or a UsageError naming `where`."""
    if value is None and type(None) in typing.get_args(field.type):
        return None
    want, meta = kind(field), field.metadata
    try:
        value = _parse(want, value, meta["unit"])
    except LmcliError as error:
        raise UsageError(f"{where}: {error}") from None
    except (KeyError, ValueError, TypeError, OverflowError):
        noun = {bool: "true or false", int: "a whole number", float: "a number"}.get(want, "text")
        raise UsageError(f"{where} takes {noun}, not {value!r}") from None
    if meta["choices"] and value not in meta["choices"]:
        close = suggest(str(value), meta["choices"])
        raise UsageError(f"{where} is one of {', '.join(meta['choices'])}, not {value!r}{close}")
    if want in (int, float):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UsageError(f"{where} is too large")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where} must be finite, not {value}")
        if meta["low"] is not None and value < meta["low"]:
            raise UsageError(f"{where} must be at least {_shown(meta['low'])}, not {_shown(value)}")
        if meta["high"] is not None and value > meta["high"]:
            raise UsageError(f"{where} must be at most {_shown(meta['high'])}, not {_shown(value)}")
    return value


def _shown(number: float) -> str:
    whole = abs(number) < 1e15 and number == int(number)
    return f"{number:,.0f}" if whole else f"{number:g}"


def _parse(want: type, value: Any, unit: str) -> Any:
    if want is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        return value if isinstance(value, bool) else words[str(value).lower()]
    if isinstance(value, bool) or (want is str and not isinstance(value, str)):
        raise TypeError
    if want is int and isinstance(value, str):
        return units.parse_bytes(value) if unit == "bytes" else units.parse_count(value)
    if unit == "duration":
        units.parse_duration(value)
    if want is int and value != int(value):
        raise ValueError
    return want(value)


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def build(cls: type[T], values: Mapping[str, Any], where: Callable[[str], str] = flag) -> T:
    """An instance of a config dataclass; unknown keys and bad values are UsageErrors."""
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UsageError(f"{where(key)} is not a setting{suggest(key, known)}")
    return cls(**{key: convert(known[key], value, where(key)) for key, value in values.items()})


def pick(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of one of several config dataclasses that `values` has settings of."""
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return build(cls, {name: values[name] for name in names if name in values})


def collect(
    fields: Mapping[str, "dataclasses.Field[Any]"],
    flags: Mapping[str, Any],
    config_file: Path | None = None,
) -> dict[str, Any]:
    """The values the user gave for `fields`, by precedence; defaults are left out."""
    found: dict[str, Any] = {}
    if config_file is not None:
        table = read_file("--config", config_file, tomllib.loads, "TOML")
        for key, value in table.items():
            if key not in fields:
                raise UsageError(f"{config_file}: unknown key {key!r}{suggest(key, fields)}")
            found[key] = convert(fields[key], value, f"{config_file}: {key}")
    for key, field in fields.items():
        name = "LMCLI_" + key.upper()
        if name in os.environ:
            found[key] = convert(field, os.environ[name], name)
    for key, value in flags.items():
        if value is not None:
            found[key] = convert(fields[key], value, flag(key))
    return found


def read_file(flag: str, path: Path, parse: Callable[[str], Any], kind: str) -> Any:
    """What `parse` makes of the file that a flag names; UsageError or MissingInputError."""
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"{flag} {path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag} {path}: not valid {kind} ({error})") from None
