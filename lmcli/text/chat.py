"""A chat as one text: what a template writes around each turn, as text and special tokens."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmcli.config.fields import read_file
from lmcli.errors import DataError, UsageError
from lmcli.text.readers import field_of

Side = list[str | int]  # runs of text, and ids of special tokens

DEFAULT = {"system": "{content}<sep>", "user": "{content}<sep>", "assistant": "{content}<eos>"}


def read_template(path: Path) -> dict[str, str]:
    """Role -> text with {content}, from JSON or TOML; UsageError or MissingInputError."""
    parse = tomllib.loads if path.suffix == ".toml" else json.loads
    template: Any = read_file("--chat-template", path, parse, "JSON or TOML")
    if (
        not isinstance(template, dict)
        or "assistant" not in template
        or not all(isinstance(t, str) and t.count("{content}") == 1 for t in template.values())
    ):
        raise UsageError(
            f"--chat-template {path}: it names roles, assistant among them, and for each a text "
            "that holds {content} once"
        )
    return template


def spelled(text: str, special: Mapping[str, int]) -> Side:
    """A template's text, in which the names of special tokens are these."""
    names = sorted(special, key=len, reverse=True)
    pattern = f"({'|'.join(map(re.escape, names))})"
    return [special.get(run, run) for run in re.split(pattern, text) if run]


class Chat:
    """A template for a tokenizer with these special tokens.

    Those that the template spells become ids; those that a turn's content spells stay text. What
    stands between two contents is a run of its own, as around the source of a prompt.
    """

    def __init__(self, template: Mapping[str, str], special: Mapping[str, int]) -> None:
        self._template, self._special = template, special

    def replies(self, messages: Any, where: str) -> Iterator[tuple[Side, Side]]:
        """(everything before it, the reply) for each turn of the assistant.

        Without a word on one of the sides, or a turn of the assistant, both are empty.
        """
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise DataError(f"{where}: messages is not a list of objects with role and content")
        before: Side = []
        said, after = False, ""
        for message in messages:
            role, content = (field_of(message, k, "messages", where) for k in ("role", "content"))
            if role not in self._template:
                known = ", ".join(self._template)
                raise DataError(f"{where}: no role {role!r} in the chat template, only {known}")
            head, _, tail = self._template[role].partition("{content}")
            before = before + spelled(after + head, self._special)
            if role == "assistant":
                reply = [content, *spelled(tail, self._special)]
                yield (before, reply) if said and content.strip() else ([], [])
            before, after, said = [*before, content], tail, said or bool(content.strip())
        if all(message["role"] != "assistant" for message in messages):
            yield [], []
