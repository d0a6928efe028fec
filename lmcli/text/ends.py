"""Where a text that grows token by token ends: at the first of some strings, which stays out."""

import codecs
from collections.abc import Sequence

from lmcli.text.tokenizer import Tokenizer


class Ends:
    """Stop strings over token ids; one may lie across tokens, or begin inside of one."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts
        self._bytes = [text.encode() for text in texts]
        # each token has a byte or more, but for special ones
        self._tail = 8 + max(map(len, self._bytes), default=0) if tokenizer.spells_bytes else 0

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether an end lies in the last few tokens."""
        data = self.tokenizer.decode_bytes(ids[-self._tail :])
        return any(end in data for end in self._bytes)

    def readable(self, ids: Sequence[int], final: bool = True) -> str:
        """The text up to its end; until it is `final`, without what may yet become part of another
        character or of an end, so that it only ever grows."""
        data = self.tokenizer.decode_bytes(ids)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data, final)
        found = [place for end in self.texts if (place := text.find(end)) >= 0]
        if found:
            return text[: min(found)]
        for n in range(0 if final else max(map(len, self.texts), default=1) - 1, 0, -1):
            if any(end.startswith(text[-n:]) for end in self.texts):
                return text[:-n]
        return text
