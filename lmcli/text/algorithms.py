"""How a vocabulary is learned from text: byte-level BPE, Unigram, WordPiece, characters, bytes.

All five stand on GPT-2's alphabet of 256 bytes, so nothing is unknown to any of them and each gives
back the bytes of any Unicode text. Ids: the special tokens, then whatever the algorithm learned.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from lmcli import console
from lmcli.config.units import show_duration
from lmcli.errors import DataError, UsageError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>")
CONTINUED = "##"  # WordPiece's mark of a piece that does not begin a word
DEFAULT_VOCAB_SIZE = 8192

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# GPT-2's printable stand-in for each byte, inverted.
BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}
ALPHABET = sorted(BYTE_OF)
_LONG_WORD = re.compile(r"\S{4096}(?=\S)")
_TRAINING: dict[str, Any] = {"initial_alphabet": ALPHABET, "show_progress": False}


def learn(texts: Iterable[str], algorithm: str, vocab_size: int | None) -> HFTokenizer:
    """A tokenizer of `vocab_size`; without one: 8192, or fewer where the text supports no more."""
    inside, least = "", len(SPECIAL) + 256
    if algorithm == "wordpiece":
        inside, least = " at the start of a word, 256 inside", least + 256
    if vocab_size is not None and vocab_size < least:
        raise UsageError(
            f"--vocab-size {vocab_size} is too small: {least} is the least "
            f"(256 bytes{inside} and {len(SPECIAL)} special tokens)"
        )
    size = least if algorithm == "byte" else vocab_size or DEFAULT_VOCAB_SIZE
    learner = {"bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece}.get(
        algorithm, _characters
    )
    inner = learner(_without_long_words(texts), size)
    inner.add_special_tokens(list(SPECIAL))
    reached = inner.get_vocab_size()
    if vocab_size is not None and reached < vocab_size:
        raise DataError(
            f"--vocab-size {vocab_size} is out of reach: this text supports {reached} tokens; "
            "ask for that many or give more text"
        )
    return inner


def _without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut inside words of thousands of letters: learning takes their length squared."""
    for text in texts:
        start = 0
        for part in _LONG_WORD.finditer(text):
            yield text[start : part.end()]
            start = part.end()
        yield text[start:]


def over_bytes(model: models.Model, *parts: Any) -> HFTokenizer:
    """A tokenizer that spells in bytes, by default GPT-2's pre-tokens (Radford et al. 2019)."""
    inner = HFTokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(parts)) if parts else words
    inner.decoder = decoders.ByteLevel()
    return inner


def _train(draft: HFTokenizer, texts: Iterable[str], trainer: trainers.Trainer) -> None:
    """In another thread, because the library looks for no signal in minutes of work, and says
    nothing."""
    read: list[float] = []
    failed: list[BaseException] = []

    def given() -> Iterator[str]:
        yield from texts
        read.append(time.monotonic())

    def train() -> None:
        try:
            draft.train_from_iterator(given(), trainer)
        except BaseException as error:  # its panics are no Exception
            failed.append(error)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(console.EVERY)
        if read and thread.is_alive():
            console.say(f"all is read; learning for {show_duration(time.monotonic() - read[0])}")
    if failed:
        raise failed[0]


def _bpe(texts: Iterable[str], size: int) -> HFTokenizer:
    """Byte-pair encoding (Sennrich et al. 2016)."""
    inner = over_bytes(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), **_TRAINING)
    _train(inner, texts, trainer)
    return inner


def _wordpiece(texts: Iterable[str], size: int) -> HFTokenizer:
    """Longest match first (Schuster and Nakajima 2012), in bytes and at most 100 at a time.

    `#` stands alone, or a word that begins with `##` would read as the rest of another one.
    """
    parts = (
        pre_tokenizers.Split("#", "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Split(Regex(r"[\s\S]{1,100}"), "isolated"),
    )
    draft = over_bytes(models.WordPiece(unk_token=SPECIAL[0]), *parts)
    every = [*SPECIAL, *(CONTINUED + c for c in ALPHABET)]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=every, **_TRAINING)
    _train(draft, texts, trainer)
    # Anew, because the bytes inside words were special tokens only for the trainer.
    inner = over_bytes(models.WordPiece(draft.get_vocab(), unk_token=SPECIAL[0]), *parts)
    whole = decoders.Replace(Regex("^" + CONTINUED), "")
    inner.decoder = decoders.Sequence([whole, decoders.ByteLevel()])
    return inner


def _unigram(texts: Iterable[str], size: int) -> HFTokenizer:
    """The pieces of a unigram language model (Kudo 2018).

    The library takes its first candidates from where words differ, in a list where each word stands
    once, and so misses whole words: 3.10 bytes a token instead of 3.86 on two English novels.
    Each word of count 2 or more is therefore given once more with a mark behind it.
    """
    inner, draft = over_bytes(models.Unigram()), HFTokenizer(models.Unigram())
    draft.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    words, mark = Counter[str](), "\1"

    def spelled() -> Iterator[str]:
        for text in texts:
            found = [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
            words.update(found)
            yield "\n".join(found)
        yield "\n".join(word + mark for word, n in words.items() if n > 1)

    special = {token: 0.0 for token in SPECIAL}
    trainer = trainers.UnigramTrainer(
        vocab_size=size + 1, special_tokens=list(special), **_TRAINING
    )
    _train(draft, spelled(), trainer)
    learned = dict(json.loads(draft.to_str())["model"]["vocab"])
    # What stays in is the same in every run, not the last digits of the scores, nor the order of
    # bytes that no piece needed, which the library puts 0.0001 apart above the lowest score.
    floor = min((score for piece, score in learned.items() if len(piece) > 1), default=0.0)
    unused = floor + 0.0001 * (len(ALPHABET) + 1)
    scores = {p: round(s if len(p) > 1 or s > unused else floor, 4) for p, s in learned.items()}
    order = sorted(scores.keys() - {mark, *special}, key=lambda p: (-scores[p], p))
    inner.model = models.Unigram([*special.items(), *((p, scores[p]) for p in order)])
    return inner


def _characters(texts: Iterable[str], size: int) -> HFTokenizer:
    """The commonest characters; bytes spell the others, and are all there is if `size` is 260."""
    char_of = {byte: char for char, byte in BYTE_OF.items()}
    counts = Counter(char for text in texts for char in text if not char.isascii())
    common = sorted(counts, key=lambda c: (-counts[c], c))
    spelled = ["".join(char_of[b] for b in c.encode()) for c in common]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *ALPHABET, *spelled][:size])}
    return over_bytes(
        models.BPE(vocab=vocab, merges=[], ignore_merges=True),
        pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )
