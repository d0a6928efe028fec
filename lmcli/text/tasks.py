"""Pairs as a model reads them: a template around source and target, and what a task implies."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lmcli.errors import UsageError
from lmcli.text.chat import spelled
from lmcli.text.tokenizer import Tokenizer


class Task(NamedTuple):
    """`template` is for tokenizers without `<sep>`; `metric` is how its outputs are judged."""

    template: str
    metric: str


# Of config.tuning.TASKS. Only before {target} does a line end count: a file may end in one.
TASKS = {
    "translation": Task("{source} =", "bleu"),
    "summarization": Task("{source}\nTL;DR:", "rougeL"),
    "qa": Task("{source}\nAnswer:", "squad_f1"),
    "code": Task("{source}\n{target}", "chrf"),
    "chat": Task("{source}\n{target}", "chrf"),
}


@dataclass(frozen=True)
class Template:
    """Ids before and after a source; what comes after that is the target.

    Decoder: `before` source `after` target <eos>, the loss on target and `<eos>`. Encoder-decoder:
    the encoder reads `before` source `after` <eos>, the decoder learns target <eos>.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def parse(cls, text: str, tokenizer: Tokenizer) -> "Template":
        """Of a text with `{source}` in it, in which the names of special tokens are these.

        `{target}` may stand at the end. Raises UsageError for anything else.
        """
        head, found, tail = text.removesuffix("\n").removesuffix("{target}").partition("{source}")
        if not found or "{source}" in tail or "{target}" in head + tail:
            raise UsageError(
                f"the template {text!r} must have {{source}} once, and {{target}} only at its end"
            )
        return cls(encode(head, tokenizer), encode(tail, tokenizer))

    def prompt(self, source: Sequence[int], room: int | None = None) -> list[int]:
        """What a model reads before it writes, in at most `room` ids, for which a source gives up
        its end; without the `<eos>` around it."""
        if room is not None:
            source = source[: max(0, room - len(self.before) - len(self.after))]
        return [*self.before, *source, *self.after]


def template(
    arch: str, task: str | None, tokenizer: Tokenizer, chat: Mapping[str, str] | None = None
) -> str:
    """The template where none is given: what stands around a user's turn of a conversation, `<sep>`
    between the two, or the task's own words."""
    if chat:
        after = chat["assistant"].partition("{content}")[0]
        user = chat.get("user", "{content}").replace("{content}", "{source}")
        return user + after + "{target}"
    if arch == "encoder-decoder":
        return "{source}"
    if tokenizer.sep_id is not None:
        return "{source}<sep>"
    return TASKS[task].template if task else "{source}\n{target}"


def encode(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a template's text, in which the tokenizer's special tokens are these."""
    ids: list[int] = []
    for run in spelled(text, tokenizer.special):
        if isinstance(run, int):
            ids.append(run)
        elif missing := re.search("<sep>|<eos>|<bos>", run):
            raise UsageError(f"the template has {missing[0]}, but the tokenizer has no such token")
        else:
            ids += tokenizer.encode(run)
    return tuple(ids)
