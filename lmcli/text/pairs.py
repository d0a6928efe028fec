"""Pairs of source and target out of parallel lines, tables, records and conversations.

A side is a list of texts; in a conversation every second one is what stands between two turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

from lmcli.config.data import PairConfig
from lmcli.errors import DataError
from lmcli.text import tasks
from lmcli.text.readers import Reader, field
from lmcli.text.tokenizer import Tokenizer

Side = list[str]
Pair = tuple[str, Side, Side]  # where, source, target


def default_chat(tokenizer: Tokenizer) -> dict[str, str]:
    """What stands around a turn's content, where the tokenizer artifact says nothing of its own."""
    sep = "\n" if tokenizer.sep_id is None else "<sep>"
    after = {"system": sep, "user": sep, "assistant": "<eos>"}
    return {role: "{content}" + special for role, special in after.items()}


def pairs(
    sources: Reader, targets: Reader | None, config: PairConfig, chat: Mapping[str, str]
) -> Iterator[Pair | None]:
    """Every pair, or None for one that has no text on a side or could not be read."""
    if targets is None:
        for where, record in sources.records():
            try:
                found = [None] if record is None else _of_record(record, where, config, chat)
            except DataError as error:
                sources._skip(error)
                found = [None]
            yield from found
        return
    for one, other in zip_longest(sources.records(), targets.records()):
        if one is None or other is None:
            n = [sum(1 for _ in reader.records()) for reader in (sources, targets)]
            names = [" ".join(map(str, reader.paths)) for reader in (sources, targets)]
            raise DataError(
                f"{names[0]} has {n[0]:,} lines and {names[1]} has {n[1]:,}: "
                "--source and --target go line by line"
            )
        yield _pair(one[0], [one[1] or ""], [other[1] or ""])


def _pair(where: str, source: Side, target: Side) -> Pair | None:
    return (where, source, target) if source[-1].strip() and target[0].strip() else None


def _of_record(
    record: Any, where: str, config: PairConfig, chat: Mapping[str, str]
) -> list[Pair | None]:
    if isinstance(record, str):
        raise DataError(f"{where}: plain text has no fields; give it as --source and --target")
    if config.source_key and config.target_key:
        keys, target = config.source_key.split(","), config.target_key
        parts = [field(record, key.strip(), "--source-key", where) for key in keys]
        text = field(record, target, "--target-key", where)
        return [_pair(where, ["\n".join(parts)], [text])]
    if "messages" in record:
        return list(_of_chat(record["messages"], where, chat))
    prompt, completion = (
        field(record, key, "of --pairs; or name --source-key and --target-key", where)
        for key in ("prompt", "completion")
    )
    return [_pair(where, [prompt], [completion])]


def _of_chat(messages: Any, where: str, chat: Mapping[str, str]) -> Iterator[Pair | None]:
    """Each assistant turn after what was said before it.

    The source begins with the first turn's content and ends with the last one's: what stands around
    a user's turn is the run's template, so that a prompt needs none.
    """
    before: list[tuple[str, str]] = []
    for turn in messages if isinstance(messages, list) else [None]:
        role = turn.get("role") if isinstance(turn, dict) else None
        if not isinstance(turn, dict) or not isinstance(role, str) or role not in chat:
            known = ", ".join(chat)
            raise DataError(f"{where}: messages must be a list of turns with a role of {known}")
        content = field(turn, "content", "of a message", where)
        if role == "assistant" and before:
            source: Side = [before[0][1]]
            for (earlier, _), (later, said) in pairwise(before):
                tail, head = (chat[who].split("{content}") for who in (earlier, later))
                source += [tail[1] + head[0], said]
            yield _pair(where, source, [content])
        before.append((role, content))


def encode(sides: Sequence[Side], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each side; text that spells a special token is text, but for what is between
    turns."""
    said = iter(tokenizer.encode_batch([part for side in sides for part in side[::2]]))
    return [
        [
            i
            for n, part in enumerate(side)
            for i in (next(said) if n % 2 == 0 else tasks.encode(part, tokenizer))
        ]
        for side in sides
    ]
