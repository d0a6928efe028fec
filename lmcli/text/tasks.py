"""Pairs as a model reads them: a template around source and target, and what a task implies."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmcli.errors import UsageError
from lmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Task:
    """`template` is for tokenizers without `<sep>`; `metric` is how its outputs are judged."""

    template: str
    metric: str


TASKS = {  # of config.tuning.TASKS
    "translation": Task("{source} =", "bleu"),
    "summarization": Task("{source}\nTL;DR:", "rougeL"),
    "qa": Task("{source}\nAnswer:", "squad_f1"),
    "code": Task("{source}\n", "chrf"),
    "chat": Task("{source}\n", "chrf"),
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
        """Of a text with `{source}` in it, in which `<sep>` is the special token.

        `{target}` may stand at the end. Raises UsageError for anything else.
        """
        head, found, tail = text.removesuffix("\n").removesuffix("{target}").partition("{source}")
        if not found or "{source}" in tail or "{target}" in head + tail:
            raise UsageError(
                f"the template {text!r} must have {{source}} once, and {{target}} only at its end"
            )
        return cls(_encode(head, tokenizer), _encode(tail, tokenizer))

    def prompt(self, source: Sequence[int]) -> list[int]:
        """What a model reads before it writes; without the `<eos>` around it."""
        return [*self.before, *source, *self.after]


def template(arch: str, task: str | None, tokenizer: Tokenizer) -> str:
    """The template where none is given: `<sep>` between the two, or the task's own words."""
    if arch == "encoder-decoder":
        return "{source}"
    if tokenizer.sep_id is not None:
        return "{source}<sep>"
    return TASKS[task].template if task else "{source}\n"


def _encode(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids: list[int] = []
    for i, part in enumerate(text.split("<sep>")):
        if i:
            if tokenizer.sep_id is None:
                raise UsageError("the template has <sep>, but the tokenizer has no such token")
            ids.append(tokenizer.sep_id)
        ids += tokenizer.encode(part)
    return tuple(ids)
