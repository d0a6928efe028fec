"""lmcli score"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.fields import suggest
from lmcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from lmcli.metrics.metric import Metric

DEFAULT = ("bleu", "chrf", "ter")


@click.command(short_help="BLEU, chrF, TER, ROUGE, EM and F1 of texts against references.")
@click.argument("hypotheses")
@click.option("--ref", "references", multiple=True, metavar="FILE", help="References (repeatable).")
@click.option(
    "--metric",
    "names",
    multiple=True,
    metavar="NAME",
    help="bleu, chrf, chrf++, ter, rouge1, rouge2, rougeL, rougeLsum, exact, em or f1; several "
    "may be given.  [default: bleu, chrf, ter]",
)
@click.option("--tokenize", default="13a", show_default=True, metavar="NAME", help="BLEU's words.")
@click.option("--lowercase", is_flag=True, help="Ignore case in bleu, chrf and ter.")
@click.option("--stem", is_flag=True, help="Stem English words in ROUGE.")
@click.option("--hyp-key", default="completion", show_default=True, help="Field of TSV or JSONL.")
@click.option("--ref-key", default="reference", show_default=True, help="Field of TSV or JSONL.")
@click.option("--segments", is_flag=True, help="A line of scores for each segment, too.")
@click.option("--baseline", metavar="FILE", help="Hypotheses of another system, to compare with.")
@click.option(
    "--test",
    type=click.Choice(["bootstrap", "randomisation"]),
    default="bootstrap",
    show_default=True,
    help="How the comparison is tested.",
)
@click.option(
    "--samples", type=click.IntRange(1), default=1000, show_default=True, help="Resamples."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Their seed.")
@options.common
def command(
    hypotheses: str,
    references: tuple[str, ...],
    names: tuple[str, ...],
    tokenize: str,
    lowercase: bool,
    stem: bool,
    hyp_key: str,
    ref_key: str,
    segments: bool,
    baseline: str | None,
    test: str,
    samples: int,
    seed: int,
    root: Path,
    as_json: bool,
) -> None:
    """Score texts against references: a line each, or a field of TSV or JSONL; - is stdin.

    Without --ref the references are in the records of HYPOTHESES. A reference in JSONL may be a
    list. Each number comes with the signature of how it was made.

    \b
    Examples:
      lmcli score out.de --ref test.de
      lmcli sample base --json < prompts | lmcli score - --ref answers.txt --metric f1
      lmcli score out.zh --ref a.zh --ref b.zh --metric bleu --tokenize zh --baseline old.zh
      lmcli score answers.jsonl --ref-key answers --metric em --metric f1 --json
    """
    for name in names or DEFAULT:  # a wrong name is said before anything is read
        _metric(name, tokenize, lowercase, stem)
    from lmcli.metrics.significance import compare
    from lmcli.text import segments as files

    hyps = [texts[0] for texts in files.read(hypotheses, hyp_key)]
    if not references and not hypotheses.removesuffix(".gz").endswith((".jsonl", ".tsv")):
        raise UsageError("--ref names the file of references")
    refs: list[list[str]] = [[] for _ in hyps]
    for name in references or (hypotheses,):
        found = files.read(name, ref_key)
        _same_length(hypotheses, len(hyps), name, len(found))
        refs = [mine + texts for mine, texts in zip(refs, found, strict=True)]
    other = None
    if baseline is not None:
        other = [texts[0] for texts in files.read(baseline, hyp_key)]
        _same_length(hypotheses, len(hyps), baseline, len(other))
    n_refs = len(refs[0]) if len({len(texts) for texts in refs}) == 1 else -1
    metrics = [_metric(name, tokenize, lowercase, stem, n_refs) for name in names or DEFAULT]
    records: list[dict[str, Any]] = []
    per_segment: dict[str, list[float]] = {}
    for metric in metrics:
        statistics = metric.statistics(hyps, refs)
        record = dataclasses.asdict(metric.score(statistics))
        if other is not None:
            theirs = metric.statistics(other, refs)
            record |= dataclasses.asdict(compare(metric, statistics, theirs, test, samples, seed))
        records.append(record)
        if segments:
            per_segment[metric.name] = metric.segments(statistics)
    if as_json:
        answer: dict[str, Any] = {"n_segments": len(hyps), "scores": records}
        console.answer_json(answer | ({"segments": per_segment} if segments else {}))
        return
    for row in zip(*per_segment.values(), strict=True):
        console.answer("\t".join(f"{value:.2f}" for value in row))
    if other is None:
        console.answer(console.table([(r["name"], f"{r['value']:.2f}") for r in records]))
    else:
        rows = [
            (r["name"], f"{r['value']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}")
            + (f"{r['baseline']:.2f}", f"{r['difference']:+.2f}", f"{r['p']:.4f}")
            for r in records
        ]
        header = ("metric", "score", "95% interval", "baseline", "difference", "p")
        console.answer(console.table(rows, header))
        console.say(f"p by {records[0]['test']}")
    for record in records:
        console.say(f"{record['name']}: {record['signature']}")


def _same_length(first: str, n: int, second: str, m: int) -> None:
    if n != m:
        raise DataError(f"{first} has {n:,} segments and {second} {m:,}; they must be as many")


def _metric(name: str, tokenize: str, lowercase: bool, stem: bool, n_refs: int = 1) -> "Metric":
    from lmcli.metrics import answers, rouge, translation

    if tokenize not in translation.TOKENIZERS:
        known = translation.TOKENIZERS
        close = suggest(tokenize, known)
        raise UsageError(f"--tokenize {tokenize!r} is not one of {', '.join(known)}{close}")
    if name in translation.NAMES:
        return translation.translation(name, tokenize, lowercase, n_refs)
    if name in rouge.NAMES:
        return rouge.rouge(name, stem)
    if name in answers.NAMES:
        return answers.answers(name)
    every = (*translation.NAMES, *rouge.NAMES, *answers.NAMES)
    raise UsageError(f"--metric {name!r} is not one of {', '.join(every)}{suggest(name, every)}")
