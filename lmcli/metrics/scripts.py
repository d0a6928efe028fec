"""Words in any script: where it puts spaces between them, and characters where it does not.

Han, kana, Thai, Lao, Khmer and Burmese write no spaces: each letter or digit, with the marks on
it, is a token. Elsewhere a run of letters, marks and numbers (Unicode categories L, M, N) is one.
"""

import regex  # unlike re, it knows scripts and set operations

SCRIPTS = r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
CHARACTER = rf"[{SCRIPTS}&&[\p{{L}}\p{{N}}]]"
UNSPACED = regex.compile(rf"(?V1){CHARACTER}")
WORD = regex.compile(rf"(?V1){CHARACTER}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{CHARACTER}]+")
PIECE = regex.compile(rf"(?V1){CHARACTER}\p{{M}}*|[\S--{CHARACTER}]+")
PUNCTUATION = regex.compile(r"\p{P}")


def words(text: str) -> list[str]:
    """'The 狐狸, naïve' -> ['the', '狐', '狸', 'naïve']; on ASCII, ROUGE's own tokens."""
    return list(WORD.findall(text.lower()))


def unspaced(text: str) -> bool:
    """Whether there is a character of a script that writes no spaces."""
    return UNSPACED.search(text) is not None
