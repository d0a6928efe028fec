"""Numbers as people write them: `10M` ten million, `3h55m` a duration, `2GiB` bytes."""

import re
from collections.abc import Mapping
from decimal import Context, Decimal

from lmcli.errors import UsageError

_COUNT = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_BYTES = {"B": 1, "": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(
    r"\s*((?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?(?:e[+-]?\d+)?)\s*([A-Za-z]*)\s*"
)


def parse_count(text: str) -> int:
    """A whole number: `5000`, `5_000`, `5k`, `10M`, `1.5B`, `1e6`. `10m` is refused."""
    return _whole(text, _COUNT, "count such as 5000, 5k or 10M")


def parse_bytes(text: str) -> int:
    """A size in bytes: `100MB` (powers of ten) or `2GiB` (powers of two)."""
    return _whole(text, _BYTES, "size such as 512MiB or 2GiB")


def _whole(text: str, units: Mapping[str, int], what: str) -> int:
    """number x unit, exactly: in floats 2.3 x 10**6 is not whole and 2**53 + 1 does not exist."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in units:
        hint = ""
        if match and match[2] == "m" and "M" in units:
            hint = f"; write {match[1]}M for million or {match[1]}min for minutes"
        raise UsageError(f"{text!r} is not a {what}{hint}")
    given = Decimal(match[1].replace(",", "").replace("_", ""))
    if given.adjusted() > 20:
        raise UsageError(f"{text!r} is too large")
    value = Context(prec=60).multiply(given, Decimal(units[match[2]]))
    if value != int(value):
        raise UsageError(f"{text!r} is not a whole number")
    return int(value)


def parse_duration(text: str) -> float:
    """Seconds: `90s`, `10min`, `3h55m`, `1d`. A bare number or a bare `10m` is refused."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    joined = re.sub(r"\s", "", text)
    if not parts or "".join(n + u for n, u in parts) != joined:
        raise UsageError(f"{text!r} is not a duration such as 90s, 10min or 3h55m")
    for number, unit in parts:
        if unit not in _SECONDS or (unit == "m" and len(parts) == 1):
            hint = f"; write {number}min for minutes" if unit in ("m", "M") else ""
            raise UsageError(f"{text!r} is not a duration such as 90s, 10min or 3h55m{hint}")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def show_count(value: float) -> str:
    """1234567 -> `1.23M`."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= 0.9995 * size:  # what rounds to 1000k reads 1M
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def show_bytes(value: float) -> str:
    """1536 -> `1.5 KiB`."""
    for letter in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if letter == "B" else f"{value:.1f} {letter}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_duration(seconds: float) -> str:
    """75 -> `1m15s`."""
    total = int(seconds + 0.5)
    hours, minutes, rest = total // 3600, total % 3600 // 60, total % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
