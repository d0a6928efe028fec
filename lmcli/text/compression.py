"""What a tokenizer makes of text: bytes per token by script, and what does not come back."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmcli.text.readers import Piece
from lmcli.text.sources import format_of
from lmcli.text.tokenizer import Tokenizer

NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
NAMES |= {"KATAKANA-HIRAGANA": "Kana", "FULLWIDTH": "Latin", "COMBINING": "other"}


@lru_cache(2**16)
def script(text: str) -> str:
    """The script of the first letter, by its Unicode name; else `digits`, else `other`."""
    for char in text:
        if unicodedata.category(char)[0] in "LM":
            word = unicodedata.name(char, "OTHER").split()[0]
            return NAMES.get(word, word.title())
    return "digits" if any(map(str.isdigit, text)) else "other"


class Losses:
    """Characters that decode(encode(text)) drops, and those it adds."""

    def __init__(self) -> None:
        self.dropped, self.added = Counter[str](), Counter[str]()

    def add(self, text: str, back: str) -> None:
        if back != text:
            before, after = Counter(text), Counter(back)
            self.dropped += before - after
            self.added += after - before

    def facts(self) -> dict[str, Any]:
        most = sorted(self.dropped, key=lambda char: (-self.dropped[char], char))[:10]
        counts = {"dropped": self.dropped.total(), "added": self.added.total()}
        return {**counts, "most_dropped": {char: self.dropped[char] for char in most}}


class Compression:
    """Counts over pieces of text; a character belongs to the script of the token it is in."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.losses = tokenizer, Losses()
        self.bytes, self.tokens = Counter[str](), Counter[str]()
        self.words = self.unknown = 0

    def add(self, piece: Piece) -> None:
        text, place, name = piece.text, 0, "other"
        code = format_of(Path(re.sub(r":\d+$", "", piece.where))) == "code"
        spans = self._tokenizer.spans(text)
        for i, start, end in spans:
            name = "code" if code else script(text[start:end])
            self.tokens[name] += 1
            self.bytes[name] += len(text[place:end].encode())
            place = max(place, end)
            self.unknown += (end - start) * (i == self._tokenizer.unknown_id)
        self.bytes[name] += len(text[place:].encode())
        self.words += len(text.split())
        self.losses.add(text, self._tokenizer.decode([i for i, _, _ in spans]))

    def facts(self) -> dict[str, Any]:
        size, tokens = self.bytes.total(), self.tokens.total()
        return {
            "bytes": size,
            "tokens": tokens,
            "words": self.words,
            "bytes_per_token": size / max(1, tokens),
            "tokens_per_word": tokens / max(1, self.words),
            "scripts": {
                name: {"bytes": n, "bytes_per_token": n / max(1, self.tokens[name])}
                for name, n in self.bytes.most_common()
            },
            "unknown": self.unknown,
            **self.losses.facts(),
        }
