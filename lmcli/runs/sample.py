"""Texts for prompts: what stands between the lines of a command and the ids of the engine."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmcli import console
from lmcli.config.generation import GenerationConfig
from lmcli.errors import UsageError
from lmcli.inference.batch import Completion as Completion
from lmcli.inference.engine import Request
from lmcli.runs.load import LoadedRun
from lmcli.text.ends import Ends


@dataclass(frozen=True)
class Prompt:
    """A prompt and the fields of the record that it came in; a blank one is left empty."""

    text: str
    fields: dict[str, Any]
    blank: bool = False


Take = Callable[[int, bool], Sequence[Prompt] | None]


def at_once(prompts: Sequence[Prompt]) -> Take:
    """Prompts that are all there."""
    there = iter([prompts])
    return lambda n, wait: next(there, None)


class Sampler:
    """A run that completes prompts under one set of rules; with `lines` one line of each."""

    def __init__(
        self,
        loaded: LoadedRun,
        config: GenerationConfig,
        lines: bool = False,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
    ) -> None:
        tokenizer = loaded.tokenizer
        self.ends = Ends(tokenizer, [*stop, *(["\n"] if lines else [])])
        self.stop_ids = tokenizer.newline_ids if lines else frozenset[int]()
        self.choices = tokenizer.encode_batch(choices)
        self.reached = Ends(tokenizer, stop).reached if stop else None
        self.record = 0
        context = loaded.engine.context_length
        if choices:
            longest = 1 + max(map(len, self.choices))  # <eos> ends a choice
            if longest > context // 2:
                raise UsageError(f"a choice of {longest} tokens fills the context of {context}")
            config = dataclasses.replace(config, max_new_tokens=longest)
        self.loaded, self.config = loaded, config
        if config.max_new_tokens >= context:
            console.warn_once(
                f"--max-new-tokens {config.max_new_tokens} does not fit: completions end with the "
                f"context of {context} tokens"
            )

    def stream(
        self, take: Take, on_text: Callable[[Prompt, str, bool], None] | None = None
    ) -> Iterator[tuple[Prompt, list[Completion]]]:
        """The completions of each prompt that `take` gives, in order (see `Engine.stream`).

        `on_text(prompt, text, final)` sees a text grow. Prompts are numbered through all calls.
        """
        first, pending = self.record, deque[Prompt]()

        def arrivals(n: int, wait: bool) -> list[Request] | None:
            if (found := take(n, wait)) is None:
                return None
            pending.extend(found)
            numbered = enumerate(found, self.record)
            requests = [Request(self._encode(p), i, 0 if p.blank else None) for i, p in numbered]
            self.record += len(found)
            return requests

        def on_token(record: int, sample: int, ids: Sequence[int], final: bool) -> None:
            if on_text is not None:
                on_text(pending[record - first], self.readable(ids, final), final)

        rules = self.stop_ids, self.reached, self.choices
        show = on_token if on_text is not None else None
        for done in self.loaded.engine.stream(arrivals, self.config, *rules, show):
            first += 1
            yield pending.popleft(), done

    def readable(self, ids: Sequence[int], final: bool = True) -> str:
        """The text of a completion, or of its beginning; a line has no carriage returns."""
        text = self.ends.readable(ids, final)
        return text.replace("\r", "") if self.stop_ids else text

    def logprobs(self, done: Completion) -> list[dict[str, Any]]:
        """Each token that was generated, `<eos>` included, with the model's log-probability."""
        ids = [*done.ids, *[self.loaded.engine.eos_id] * (done.finish_reason == "eos")]
        texts = [self.loaded.tokenizer.decode([i]) for i in done.ids] + ["<eos>"]
        return [
            {"id": i, "token": text, "logprob": logprob}
            for i, text, logprob in zip(ids, texts, done.logprobs, strict=False)
        ]

    def _encode(self, prompt: Prompt) -> list[int]:
        config, engine = self.config, self.loaded.engine
        ids = [] if prompt.blank else self.loaded.encode(prompt.text, config.max_new_tokens)
        if (room := engine.room(config.max_new_tokens)) < len(ids):
            which = "first" if engine.has_encoder else "last"
            console.warn_once(
                f"a prompt of {len(ids)} tokens keeps its {which} {room}, so that there is room "
                f"for new ones: the context is {engine.context_length}"
            )
        if 0 < config.max_length <= len(ids) and not engine.has_encoder:
            console.warn_once(
                f"a prompt of {len(ids)} tokens leaves nothing of --max-length "
                f"{config.max_length}: its completion is empty"
            )
        return ids
