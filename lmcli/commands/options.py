"""Flag families that subcommands share; config fields become flags here, and only here."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lmcli import console
from lmcli.artifacts import layout
from lmcli.config import fields

F = TypeVar("F", bound=Callable[..., Any])


def config_fields(*classes: type) -> dict[str, "dataclasses.Field[Any]"]:
    """Every field of some config dataclasses by name."""
    return {f.name: f for cls in classes for f in dataclasses.fields(cls)}


def config_flags(*classes: type, leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """A `--flag` for each field; not given means None, so that precedence can be applied."""

    def decorate(function: F) -> F:
        for name, field in reversed(config_fields(*classes).items()):
            if name in leave_out:
                continue
            text, default = field.metadata["help"], field.default
            if default is not None and default != "":
                shown = str(default).lower() if isinstance(default, bool) else f"{default}"
                text += f"  [default: {shown}]"
            if field.metadata["choices"]:
                text += f"  ({', '.join(field.metadata['choices'])})"
            flag = fields.flag(name)
            if fields.kind(field) is bool:
                flag += "/" + fields.flag("no_" + name)
                function = click.option(flag, name, default=None, help=text)(function)
            else:
                kind = fields.kind(field)
                metavar = {int: "N", float: "X", str: "TEXT"}[kind]
                function = click.option(flag, name, metavar=metavar, help=text)(function)
        return function

    return decorate


def pop_fields(values: dict[str, Any], *classes: type) -> dict[str, Any]:
    """Takes the flags of some config classes out of a command's keyword arguments."""
    return {name: values.pop(name) for name in config_fields(*classes) if name in values}


def artifacts_option(function: F) -> F:
    return click.option(
        "--artifacts",
        "root",
        metavar="DIR",
        callback=lambda ctx, param, value: layout.root(value),
        help="Artifact directory.  [default: $LMCLI_ARTIFACTS or ./artifacts]",
    )(function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(
        function
    )


def quiet_option(function: F) -> F:
    def set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        console.quiet = value

    return click.option(
        "--quiet",
        "-q",
        is_flag=True,
        expose_value=False,
        callback=set_quiet,
        help="Say nothing but answers, warnings and errors.",
    )(function)


def common(function: F) -> F:
    """`--artifacts`, `--json` and `--quiet`."""
    return artifacts_option(json_option(quiet_option(function)))


def config_file_option(function: F) -> F:
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="TOML file of settings; flags and LMCLI_* variables win over it.",
    )(function)


def exclude_option(function: F) -> F:
    return click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave out files and folders of this name when walking folders (repeatable).",
    )(function)


def force_option(function: F) -> F:
    return click.option(
        "--force", is_flag=True, help="Move an existing artifact of this name to the trash first."
    )(function)


def checkpoint_options(function: F) -> F:
    """Which checkpoint of a run, and what to compute on."""
    for name, choices, text in (
        ("--dtype", ("auto", "float32", "bfloat16"), "Compute precision."),
        ("--device", ("auto", "cpu", "cuda", "mps"), "Device."),
    ):
        function = click.option(
            name, type=click.Choice(choices), default="auto", show_default=True, help=text
        )(function)

    def check(ctx: click.Context, param: click.Parameter, value: str) -> str:
        if value not in ("best", "last") and not value.isdigit():
            raise click.BadParameter(f"{value!r} is not best, last or a step number")
        return value

    return click.option(
        "--checkpoint",
        metavar="best|last|STEP",
        default="best",
        show_default=True,
        callback=check,
        help="Checkpoint to load.",
    )(function)
