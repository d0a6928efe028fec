"""Flag families that subcommands share; config fields become flags here, and only here."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from lmcli import console
from lmcli.artifacts import layout
from lmcli.config import fields
from lmcli.config.training import DEVICES, DTYPES
from lmcli.config.units import parse_duration
from lmcli.errors import UsageError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
QUANTIZED = ("none", "int8", "int4")
OTHERS = ("artifacts", "max_time", "crash_at", "test_data", "soak_minutes")  # LMCLI_*
METAVAR = {int: "N", float: "X", str: "TEXT"}


def config_fields(*classes: type) -> dict[str, "dataclasses.Field[Any]"]:
    """Every field of some config dataclasses by name."""
    return {f.name: f for cls in classes for f in dataclasses.fields(cls)}


def family(*options: Decorator) -> Decorator:
    """Some options as one decorator, in the order in which `--help` lists them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def gathered(name: str, keys: Iterable[str], make: Callable[..., Any] = dict) -> Decorator:
    """The command gets the values of some options as one: `name`, which `make` makes of them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            made = make(**{key: values.pop(key) for key in keys})
            return function(**{name: made}, **values)

        return command

    return decorate


def settings(
    *classes: type,
    leave_out: tuple[str, ...] = (),
    file: bool = False,
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> Decorator:
    """A `--flag` for each field; the command gets `given`, what the user set, by precedence.

    With `file`, a `--config` TOML file may set them too. Fields in `leave_out` have no flag; the
    command has `usual` defaults of its own.
    """
    known = config_fields(*classes)
    flags = {
        name: _flag(name, field, usual.get(name, field.default))
        for name, field in known.items()
        if name not in leave_out
    }
    if file:
        flags = {"config_file": config_file_option, **flags}

    def collect(config_file: Path | None = None, **values: Any) -> dict[str, Any]:
        _warn_of_strangers(known)
        given = fields.collect(known, values, config_file)
        console.detail(f"settings that are not defaults: {given}")
        return given

    return family(*flags.values(), gathered("given", flags, collect))


def _warn_of_strangers(known: Iterable[str]) -> None:
    """Of variables that look like settings and are those of no command."""
    names = {name: name.removeprefix("LMCLI_").lower() for name in os.environ}
    strange = {n: key for n, key in names.items() if n.startswith("LMCLI_") and key not in known}
    if strange:
        from lmcli.config import data, generation, model, scoring, training, tuning

        modules = (data, generation, model, scoring, training, tuning)
        classes = [c for m in modules for c in vars(m).values() if dataclasses.is_dataclass(c)]
        every = {*config_fields(*classes), *OTHERS}  # type: ignore[arg-type]
        if unknown := sorted(n for n, key in strange.items() if key not in every):
            close = fields.suggest(strange[unknown[0]], every)
            console.warn_once(
                f"no setting of lmcli, in the environment: {', '.join(unknown)}{close}"
            )


def _flag(name: str, field: "dataclasses.Field[Any]", default: Any) -> Decorator:
    """The flag of a field; not given means None, so that precedence can be applied."""
    text, choices, kind = field.metadata["help"], field.metadata["choices"], fields.kind(field)
    if default is not None and default != "":
        text += f"  [default: {str(default).lower() if kind is bool else default}]"
    if choices:
        text += f"  ({', '.join(choices)})"
    flag = fields.flag(name)
    if kind is bool:
        return click.option(f"{flag}/{fields.flag('no_' + name)}", name, default=None, help=text)
    complete: Any = lambda ctx, param, word: [c for c in choices if c.startswith(word)]  # noqa: E731
    return click.option(flag, name, metavar=METAVAR[kind], help=text, shell_complete=complete)


def text(value: str) -> str:
    """A type of values, whose name `--help` shows: text, UTF-8 whatever the locale is."""
    foreign = any("\ud800" <= character <= "\udfff" for character in value)
    try:
        return os.fsencode(value).decode() if foreign else value
    except UnicodeError:
        raise click.BadParameter("not UTF-8") from None


def time(value: str) -> float:
    """A type of values, whose name `--help` shows: seconds, given as a time such as 3h55m."""
    try:
        return parse_duration(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


def checkpoint(value: str) -> str:
    """A type of values: which checkpoint of a run."""
    if value not in ("best", "last", "mean") and not (value.isascii() and value.isdecimal()):
        raise click.BadParameter(f"{value!r} is not best, last, mean or a step number")
    return value


def read_template(given: dict[str, Any]) -> None:
    """Puts the content of the file that --template names in its place."""
    if name := given.get("template"):
        given["template"] = fields.read_file("--template", Path(name), str, "UTF-8")


def _set_loudness(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:  # a command inside another one leaves it as it is
        setattr(console, str(param.name), True)


def _loudness(*names: str, help: str) -> Decorator:
    eager: Any = {"is_flag": True, "is_eager": True, "expose_value": False}
    return click.option(*names, callback=_set_loudness, help=help, **eager)


def number(name: str, default: int, help: str, metavar: str = "N", low: int = 1) -> Decorator:
    """A whole number of at least `low`."""
    kind = click.IntRange(low)
    return click.option(
        name, type=kind, default=default, show_default=True, metavar=metavar, help=help
    )


def _root(ctx: click.Context, param: click.Parameter, value: str | None) -> Path:
    root = layout.root(value)
    if root.exists() and not root.is_dir():
        raise UsageError(f"--artifacts {root}: a file, not a folder")
    console.detail(f"artifact directory: {root.absolute()}")
    return root


common = family(
    click.option(
        "--artifacts",
        "root",
        metavar="DIR",
        callback=_root,
        help="Artifact directory.  [default: $LMCLI_ARTIFACTS or ./artifacts]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
    _loudness("--quiet", "-q", help="Say nothing but answers, warnings and errors."),
    _loudness("--verbose", "-v", help="Say what was chosen, and where an error came from."),
)
config_file_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="TOML file of settings; flags and LMCLI_* variables win over it.",
)
allow_code_execution = click.option(
    "--allow-code-execution",
    is_flag=True,
    help="Run programs that the model writes, for --best-by pass@1, in a sandbox.",
)
exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders of this name when walking folders (repeatable).",
)
force_option = click.option(
    "--force", is_flag=True, help="Move an existing artifact of this name to the trash first."
)


def choice(
    name: str, help: str, choices: Sequence[str], default: str = "", variable: str | None = None
) -> Decorator:
    """One of some words, the first where neither it nor an environment variable is given."""
    kind, default = click.Choice(choices), default or choices[0]
    return click.option(
        name, type=kind, default=default, show_default=True, help=help, envvar=variable
    )


checkpoint_option = click.option(
    "--checkpoint",
    "which",
    metavar="best|last|mean|STEP",
    type=checkpoint,
    help="Checkpoint to load; mean: of the last ones.  [default: best; with --average-last mean]",
)
# Which checkpoint and what to compute on: `at`, keyword arguments of `runs.load`.
checkpoint_options = family(
    checkpoint_option,
    choice("--device", "Device.", DEVICES, variable="LMCLI_DEVICE"),
    choice("--dtype", "Compute precision.", DTYPES, variable="LMCLI_DTYPE"),
    choice("--quantize", "Weights in 8 or 4 bits, the rest in bfloat16.", QUANTIZED),
    click.option(
        "--compile", is_flag=True, help="Compile the blocks first: a minute, for long jobs."
    ),
    gathered("at", ("which", "device", "dtype", "quantize", "compile")),
)
