"""lmcli report"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.errors import UsageError

if TYPE_CHECKING:
    from lmcli.report.page import Asked

FORMATS = ("table", "markdown", "csv", "json", "html")
NEXT = 8  # most likely next tokens on a page


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), help="[default: by --out's suffix, or table]"
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write there.")
@click.option("--sample", multiple=True, metavar="PROMPT", help="Complete it on the page.")
@click.option(
    "--look", multiple=True, metavar="TEXT", help="Next words and attention of it, on the page."
)
@options.checkpoint_options
@options.common
def command(
    runs: tuple[str, ...],
    kind: str | None,
    out: Path | None,
    sample: tuple[str, ...],
    look: tuple[str, ...],
    at: dict[str, Any],
    root: Path,
    as_json: bool,
) -> None:
    """Compare runs: sizes, losses, scores, speed, and on a page curves, samples and commands.

    The page is one HTML file that needs nothing else. --sample and --look ask the models
    themselves, and may be repeated.

    \b
    Examples:
      lmcli report base small
      lmcli report base --out base.html --sample "Once upon a time"
      lmcli report base small --format markdown
    """
    from lmcli.artifacts import files
    from lmcli.report import page
    from lmcli.report.runs import read

    suffix = {".html": "html", ".csv": "csv", ".json": "json", ".md": "markdown"}
    chosen = kind or suffix.get(out.suffix if out else "", "json" if as_json else "table")
    if (sample or look) and chosen != "html":
        raise UsageError("--sample and --look are for a page: --out FILE.html")
    records = [read(root, name) for name in runs]
    names = page.columns(records)
    rows = [[r.facts.get(name) for name in names] for r in records]
    if chosen == "html":
        text = page.page(records, [_ask(root, name, sample, look, at) for name in runs])
    elif chosen == "json":
        text = files.to_json({"runs": [r.facts for r in records]}).decode()
    elif chosen == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([names, *rows])
        text = buffer.getvalue()
    elif chosen == "markdown":
        shown = [names, ["---"] * len(names), *([page.show(c) for c in row] for row in rows)]
        text = "".join(f"| {' | '.join(line)} |\n" for line in shown)
    else:  # a fact a line and a run a column: that fits a terminal
        shown = [[n, *(page.show(r.facts.get(n)) for r in records)] for n in names[1:]]
        text = console.table(shown, ("", *(r.name for r in records))) + "\n"
    if out is None or out == Path("-"):
        console.answer(text.removesuffix("\n"))
        return
    files.write_file(out, text.encode("utf-8", "backslashreplace"))  # a file's name may be no text
    console.say(f"{chosen} of {', '.join(r.name for r in records)}: {out}")
    if as_json and chosen != "json":
        console.answer_json({"out": str(out), "format": chosen})


def _ask(
    root: Path, run: str, prompts: Sequence[str], texts: Sequence[str], at: dict[str, Any]
) -> "Asked":
    """What a run makes of the prompts and of the texts."""
    if not prompts and not texts:
        return [], []
    from lmcli.config.generation import GenerationConfig
    from lmcli.runs.load import load

    loaded = load(root, run, **at)
    done = loaded.complete(prompts, GenerationConfig(max_new_tokens=100))
    looks = []
    for text in texts:
        look: dict[str, Any] = {"text": text, "next": loaded.next_tokens(text, NEXT)}
        try:
            found = loaded.attention(text)
            look |= {"words": found.words, "source": found.source, "note": found.note}
            look["weights"] = found.chosen(None, None).tolist()
        except UsageError as error:  # no reason to have no page
            look |= {"words": [], "source": [], "weights": [], "note": str(error)}
        looks.append(look)
    return [(prompt, first) for prompt, [first] in zip(prompts, done, strict=True)], looks
