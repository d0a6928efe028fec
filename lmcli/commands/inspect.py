"""lmcli inspect"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.units import show_bytes, show_count
from lmcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

BAR = 40
SHADES = " ░▒▓█"


@click.group()
def command() -> None:
    """Look inside a model: what it expects next, what it looks at, what it is made of.

    \b
    Examples:
      lmcli inspect next base "The quick brown fox jumps over the lazy"
      lmcli inspect attention base "The quick brown fox jumps over the lazy dog" --focus fox
      lmcli inspect model --preset gpt2
    """


@command.command("next")
@click.argument("run")
@click.argument("prompt", type=options.text)
@options.number("--top", 10, "Tokens shown.")
@options.checkpoint_options
@options.common
def next_(run: str, prompt: str, top: int, at: dict[str, Any], root: Path, as_json: bool) -> None:
    """The most likely next tokens: P(w_t | w_1 .. w_t-1), before any temperature.

    \b
    Example:
      lmcli inspect next base "The quick brown fox jumps over the lazy" --top 5
    """
    from lmcli.runs.load import load

    loaded = load(root, run, **at)
    rows = loaded.next_tokens(prompt, top)
    if as_json:
        console.answer_json({"prompt": prompt, "step": loaded.step, "next": rows})
        return
    most = max(row["probability"] for row in rows)
    for row in rows:
        bar = "█" * round(BAR * row["probability"] / most)
        console.answer(f"{row['probability']:.4f}  {bar:<{BAR}}  {row['token']!r}")
    rest = 1 - sum(row["probability"] for row in rows)
    if others := loaded.tokenizer.vocab_size - len(rows):
        console.say(f"the other {others:,} tokens share {max(rest, 0):.4f}")


@command.command("attention")
@click.argument("run")
@click.argument("text", type=options.text)
@click.option(
    "--target",
    type=options.text,
    help="Encoder-decoder: what it wrote.  [default: what it writes]",
)
@click.option("--focus", metavar="WORD", help="Only what this word looks at, and who looks at it.")
@click.option("--layer", type=int, metavar="N", help="One layer, from 1.  [default: their mean]")
@click.option("--head", type=int, metavar="N", help="One head, from 1.  [default: their mean]")
@options.checkpoint_options
@options.common
def attention(
    run: str,
    text: str,
    target: str | None,
    focus: str | None,
    layer: int | None,
    head: int | None,
    at: dict[str, Any],
    root: Path,
    as_json: bool,
) -> None:
    """How much each word of a text looks at each word before it; rows sum to 1.

    Of an encoder-decoder how much each word that it writes looks at each word of its source.

    \b
    Examples:
      lmcli inspect attention base "The quick brown fox jumps over the lazy dog"
      lmcli inspect attention base "The quick brown fox jumps" --focus fox --layer 2 --head 1
    """
    from lmcli.runs.load import load

    found = load(root, run, **at).attention(text, target)
    matrix, own = found.chosen(layer, head), found.source == found.words
    facts: dict[str, Any] = {"layer": layer or "mean", "head": head or "mean", "note": found.note}
    facts |= {"words": found.words, "source": found.source, "weights": matrix.tolist()}
    if focus is None:
        shown = heat_map(found.words, found.source, matrix)
    else:
        i = found.find(focus)
        facts |= {"focus": found.words[i], "looks_at": matrix[i].tolist()}
        seen = i + 1 if own else len(found.source)
        shown = f"{focus} looks at\n{_bars(found.source[:seen], matrix[i, :seen])}"
        if own:
            facts |= {"looked_at_by": matrix[:, i].tolist()}
            shown += f"\nwho looks at {focus}\n{_bars(found.words[i:], matrix[i:, i])}"
    console.reply(as_json, facts, shown)
    console.say(found.note)


def _bars(words: list[str], values: "np.ndarray") -> str:
    pairs = zip(words, values, strict=True)
    return console.table([(word, f"{x:.3f}", "█" * round(BAR * x)) for word, x in pairs])


def heat_map(words: list[str], source: list[str], matrix: "np.ndarray") -> str:
    """A row for each word that looks; shades, and colours on a terminal, from 0 to 1."""
    from rich.cells import cell_len

    width = max(cell_len(word) for word in words)
    coloured = console.coloured()
    lines = []
    for i, word in enumerate(words):
        cells = []
        for value in matrix[i][: i + 1] if source == words else matrix[i]:
            percent = f"{100 * value:3.0f} "
            if coloured:
                light = int(255 * (1 - value))
                ink = 97 if value > 0.5 else 30
                cells.append(f"\x1b[48;2;255;{light};{light};{ink}m{percent}\x1b[0m")
            else:
                cells.append(SHADES[min(4, int(5 * value))] + percent)
        lines.append(f"{word}{' ' * (width - cell_len(word))} {''.join(cells)}")
    what = "word" if source == words else f"of: {' '.join(source)}"
    return "\n".join(lines) + f"\n(percent; column k is the k-th {what})"


@command.command("model")
@click.argument("run", required=False)
@click.option("--preset", "preset_name", metavar="NAME", help="A shape instead of a run.")
@options.number("--vocab-size", 8192, "Vocabulary of a preset.")
@options.common
def model(
    run: str | None, preset_name: str | None, vocab_size: int, root: Path, as_json: bool
) -> None:
    """The parameters of a run or a preset: names, shapes, numbers.

    \b
    Examples:
      lmcli inspect model base
      lmcli inspect model --preset gpt2 --json
    """
    if (run is None) == (preset_name is None):
        raise UsageError("name a run, or a shape with --preset NAME")
    from lmcli.artifacts import layout
    from lmcli.runs.config import RunConfig, parameters, preset

    if run is not None:
        config = RunConfig.read(layout.find(root, run, "run")).model
    else:
        assert preset_name is not None
        config = preset(preset_name)
        config = config.resolved(config.vocab_size or vocab_size)
    shapes = parameters(config)
    sizes = {name: math.prod(dims) for name, dims in shapes.items()}
    total = sum(sizes.values())
    if as_json:
        listed = {n: {"shape": list(shapes[n]), "parameters": sizes[n]} for n in shapes}
        console.answer_json({"parameters": total, "by_name": listed})
        return
    grouped: dict[str, list[str]] = {}
    for name in shapes:  # blocks of a stack are alike: one line for all of them
        grouped.setdefault(re.sub(r"blocks\.\d+\.", "blocks.*.", name), []).append(name)
    rows = []
    for name, members in grouped.items():
        count = sum(sizes[m] for m in members)
        dims = " x ".join(map(str, shapes[members[0]]))
        times = f"{len(members)} times" if len(members) > 1 else ""
        rows.append((name, dims, times, f"{count:,}", f"{count / total:.1%}"))
    console.answer(console.table(rows, ("parameter", "shape", "", "numbers", "share")))
    console.answer(
        f"{show_count(total)} parameters: {show_bytes(4 * total)} in float32, "
        f"{show_bytes(2 * total)} in bfloat16; {show_bytes(16 * total)} with gradients and AdamW"
    )
