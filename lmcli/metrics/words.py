"""Text to words for metrics, in any script.

Scripts that put no space between words give a token for each character; elsewhere a word is a run
of letters, marks and digits. On ASCII text the words are those of rouge-score.
"""

import unicodedata
from functools import lru_cache

# Han, kana, Thai, Lao, Tibetan, Myanmar, Khmer: first and last code point.
UNSPACED = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D), (0x20000, 0x3FFFF), (0x0E00, 0x0EFF),
    (0x0F00, 0x109F), (0x1780, 0x17FF),
)  # fmt: skip


@lru_cache(maxsize=2**16)
def _kind(character: str) -> str:
    """`word`, `alone`, `mark` (joins what is before it) or empty for what separates."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category[0] not in "LN":
        return ""
    code = ord(character)
    return "alone" if any(low <= code <= high for low, high in UNSPACED) else "word"


def words(text: str) -> list[str]:
    """`Die 狐狸 jumps!` -> die, 狐, 狸, jumps"""
    found: list[str] = []
    before = ""
    for character in text.lower():
        kind = _kind(character)
        if (kind == "mark" and before) or (kind == "word" and before == "word"):
            found[-1] += character
        elif kind:
            found.append(character)
        before = before if kind == "mark" and before else kind
    return found
