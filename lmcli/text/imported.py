"""Tokenizers that others made: a Hugging Face tokenizer.json, or GPT-2's vocabulary and merges."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from lmcli.errors import DataError, MissingInputError, UsageError
from lmcli.text.algorithms import over_bytes
from lmcli.text.tokenizer import Tokenizer

SETS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
SPELLINGS = {
    "eos": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]"),
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "[CLS]"),
    "pad": ("<pad>", "[PAD]"),
    "sep": ("<sep>", "[SEP]"),
}


def find(inputs: Sequence[str]) -> list[Path]:
    """The files of one tokenizer: those that are named, or the first whole set in a folder."""
    paths = [Path(name) for name in inputs]
    for names in SETS if paths[0].is_dir() else ():
        inside = [paths[0] / name for name in names]
        if all(path.is_file() for path in inside):
            return inside
    for path in paths:
        if not path.is_file():
            raise MissingInputError(
                f"{path}: no tokenizer.json here, nor vocab.json with merges.txt"
            )
    return sorted(paths, key=lambda path: path.suffix != ".json")


def load(paths: Sequence[Path], eos: str | int | None = None) -> Tokenizer:
    """The tokenizer of the files that `find` found; `eos` is the token that ends a text, or its id.

    Special tokens are the well-known ones of its vocabulary. Without a `bos` or `pad` of its own it
    uses its `eos`; it may have no `sep`.
    """
    try:
        if len(paths) == 1:
            inner = HFTokenizer.from_file(str(paths[0]))
        else:
            inner = over_bytes(models.BPE.from_file(*map(str, paths)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library's for a bad file; its panic is no Exception
        raise DataError(
            f"{paths[0]}: not a tokenizer.json, nor a vocab.json with merges.txt ({error}); "
            "convert others with the transformers library's save_pretrained"
        ) from None
    if isinstance(inner.model, models.BPE):
        inner.model.dropout = None  # noise for training others; ids here never change
    inner.post_processor = None  # what belongs around a text is for the engine to say
    vocab = inner.get_vocab()
    if isinstance(eos, int):
        eos = inner.id_to_token(eos) or str(eos)
    if eos is not None and eos not in vocab:
        raise UsageError(f"--eos {eos} is not in the vocabulary")
    spellings = SPELLINGS | {"eos": (eos,)} if eos else SPELLINGS
    known = {role: [t for t in tokens if t in vocab] for role, tokens in spellings.items()}
    roles = {role: tokens[0] for role, tokens in known.items() if tokens}
    if "eos" not in roles:
        raise DataError(f"{paths[0]}: no token that ends a text is known; name it with --eos TOKEN")
    roles = {"bos": roles["eos"], "pad": roles["eos"]} | roles
    inner.add_special_tokens(sorted(set(roles.values())))
    return Tokenizer(inner, roles)
