"""lmcli score"""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.fields import build, suggest
from lmcli.config.scoring import METRICS, ScoringConfig
from lmcli.errors import DataError, RefusedError, UsageError

if TYPE_CHECKING:
    from lmcli.runs.load import LoadedRun
    from lmcli.text.segments import Source

REF = "References, one for each hypothesis (repeatable).  [default: --ref-key of HYPS]"
NAMES = (*METRICS, "pass@1")  # or another k
METRIC = f"What to compute (repeatable).  [default: bleu, chrf, ter]  ({', '.join(NAMES)} ..)"
DEFAULT = ("bleu", "chrf", "ter")


@click.command()
@click.argument("hyps", default="-")
@click.option("--ref", "refs", metavar="REFS", multiple=True, help=REF)
@click.option("--metric", "-m", "metrics", multiple=True, help=METRIC, default=DEFAULT)
@click.option("--baseline", metavar="HYPS", help="Another system's hypotheses to test against.")
@click.option("--segments", is_flag=True, help="The scores of each segment, tab-separated.")
@options.settings(ScoringConfig)
@click.option("--model", metavar="RUN", help="Print how likely a run finds each line or pair.")
@click.option("--source", metavar="FILE", help="--model: prompts or sources, one for each line.")
@click.option("--jsonl", is_flag=True, help="--model: records of --prompt-key and --hyp-key.")
@click.option(
    "--prompt-key", default="prompt", show_default=True, help="--model: what stands before a text."
)
@click.option("--end/--no-end", default=True, help="--model: whether <eos> ends each text.")
@options.checkpoint_options
@options.common
def command(
    hyps: str,
    refs: tuple[str, ...],
    metrics: tuple[str, ...],
    baseline: str | None,
    segments: bool,
    given: dict[str, Any],
    model: str | None,
    at: dict[str, Any],
    root: Path,
    as_json: bool,
    **form: Any,
) -> None:
    """Score hypotheses against references, one segment a line; `-` is standard input.

    Every number comes with its signature. With --baseline, paired bootstrap resampling and
    approximate randomization say whether the two systems differ. Files may also be .jsonl or .tsv
    with named fields, and gzipped.

    pass@k runs programs (docs/metrics.md): REFS has the fields prompt, test and perhaps entry_point
    for each problem, HYPS the same number of completions for each, one after the other.

    With --model a filter: for each line its log-probability, tokens, log-probability per token and
    perplexity, tab-separated. A line is a text, or for a run on pairs a source and a target with a
    tab between them.

    \b
    Examples:
      lmcli score hyps.txt --ref refs.txt
      cat hyps.zh | lmcli score - --ref refs.zh --tokenize zh --metric bleu --metric chrf
      lmcli score new.txt --ref a.txt --ref b.txt --baseline old.txt --json
      lmcli score answers.jsonl --hyp-key answer --ref-key gold -m squad_em -m squad_f1
      lmcli score completions.jsonl --ref problems.jsonl -m pass@1 -m pass@10 --allow-code-execution
      lmcli score --model base < lines.txt
      lmcli sample base "The king" --json | lmcli score --model base --jsonl --json
    """
    config = build(ScoringConfig, given)
    if model is not None:
        if refs or baseline or segments:
            raise UsageError("--model scores by itself; --ref, --baseline and --segments do not")
        from lmcli.runs.load import load

        text_key = config.hyp_key or "completion"
        _answer_likelihoods(load(root, model, **at), hyps, text_key, as_json, **form)
        return
    if form["source"] or form["jsonl"]:
        raise UsageError("--source and --jsonl are for --model RUN")
    from lmcli.metrics.score import measure
    from lmcli.metrics.significance import compare
    from lmcli.text.segments import read

    programs = [name for name in metrics if re.fullmatch(r"pass@[1-9]\d{0,8}", name)]
    for name in metrics:
        if name not in (*METRICS, *programs):
            raise UsageError(f"no metric {name!r} in {', '.join(NAMES)}{suggest(name, NAMES)}")
    if programs and len(programs) < len(metrics):
        raise UsageError("--metric pass@k runs programs; score texts in a command of their own")
    if programs and not config.allow_code_execution:
        raise RefusedError("pass@k runs what a model wrote; allow it by --allow-code-execution")
    if [hyps, baseline, *refs].count("-") > 1:
        raise UsageError("standard input (-) can be read only once")
    hyp_key = config.hyp_key or ("completion" if programs else "")
    source = read(hyps, hyp_key)
    if not refs and not source.keyed:
        raise UsageError("no references: --ref REFS, or HYPS as .jsonl or .tsv that has them")
    references = [read(name, config.ref_key) for name in refs] or [source]
    systems = [source, read(baseline, hyp_key)] if baseline else [source]
    verdicts: list[Any] = []
    if programs:
        from lmcli.evaluation.programs import judge

        if len(references) > 1:
            raise UsageError("--metric pass@k takes one --ref, the problems")
        k = max(int(name.removeprefix("pass@")) for name in metrics)
        verdicts = [judge(references[0], system, config, k) for system in systems]
        texts: list[Any] = [[[v.passed for v in row] for row in system] for system in verdicts]
        wanted: list[Any] = references[0].rows
    else:
        texts, wanted = _texts(systems, references, config)
        _warn(texts[0], wanted, config.tokenize if "bleu" in metrics else "")
    scores, columns = [], {}
    with console.Progress("scoring", total=len(metrics), unit="metrics") as progress:
        for name in progress.over(dict.fromkeys(metrics), lambda _: 1):
            ours, *theirs = [measure(name, system, wanted, config) for system in texts]
            scores.append(asdict(ours.score()))
            if theirs:
                scores[-1] |= compare(ours, theirs[0], config.trials, config.seed)
            if segments:
                scores[-1]["segment_signature"] = ours.single_signature
                columns[name] = ours.segments()
    if as_json:
        value = {"n_segments": len(wanted), "scores": scores, "segments": columns}
        if programs:
            value["verdicts"] = [[asdict(verdict) for verdict in row] for row in verdicts[0]]
        console.answer_json(value)
    else:
        _answer(scores, columns)


def _texts(
    systems: list["Source"], references: list["Source"], config: ScoringConfig
) -> tuple[list[list[str]], list[list[str]]]:
    """The hypotheses of each system, and the references of each segment."""
    source = systems[0]
    for other in (*references, *systems):
        if len(source.rows) != len(other.rows):
            counts = f"{source.name} has {len(source.rows)}, {other.name} {len(other.rows)}"
            raise DataError(f"not the same number of segments: {counts}")
    rows = zip(*(r.segments(config.ref_key or "reference") for r in references), strict=True)
    wanted = [[text for texts in row for text in texts] for row in rows]
    found = [s.segments(config.hyp_key or "hypothesis", single=True) for s in systems]
    return [[text for [text] in system] for system in found], wanted


def _warn(texts: list[str], references: list[list[str]], tokenizer: str) -> None:
    """Two well-known ways to a BLEU that means nothing."""
    from lmcli.metrics.scripts import unspaced

    if tokenizer in ("13a", "intl") and sum(t.endswith(" .") for t in texts) > len(texts) / 2:
        console.warn("BLEU: this looks tokenized; detokenize it, or --tokenize none")
    if tokenizer in ("13a", "none") and sum(unspaced(r[0]) for r in references) > len(texts) / 2:
        console.warn(f"BLEU: --tokenize {tokenizer} finds few words here; take zh or char")


def _answer(scores: list[dict[str, Any]], columns: dict[str, list[float]]) -> None:
    """The table on stdout; with --segments these are the answer, and the table is said."""
    names = sorted(scores[0], key=lambda name: name == "test" or "signature" in name)
    cells = [[s[name] for name in names] for s in scores]
    rows = [[c if isinstance(c, str) else f"{c:.4f}" for c in row] for row in cells]
    (console.say if columns else console.answer)(console.table(rows, names))
    if columns:
        console.answer("\t".join(columns))
        for values in zip(*columns.values(), strict=True):
            console.answer("\t".join(map(str, values)))


def _answer_likelihoods(
    loaded: "LoadedRun",
    name: str,
    text_key: str,
    as_json: bool,
    source: str | None,
    jsonl: bool,
    prompt_key: str,
    end: bool,
) -> None:
    """A line or record out for each one in, flushed as they come; the sum of all is said."""
    from lmcli.text.arrivals import Arrivals
    from lmcli.text.readers import field_of, record_of
    from lmcli.text.segments import lines, stream
    from lmcli.text.sources import JSONL, plain_suffix

    jsonl = jsonl or plain_suffix(Path(name)) in JSONL
    pairs = loaded.config.tuning.template is not None
    sources = iter(lines(source, "--source")) if source else None

    def parse(where: str, line: str) -> tuple[dict[str, Any], str | None, str, bool]:
        if not line and (jsonl or sources is None):
            return {}, None, "", end
        if jsonl:
            record = record_of(line.encode(), where)
            prompt = field_of(record, prompt_key, "--prompt-key", where)
            text = field_of(record, text_key, "--hyp-key", where)
            return record, prompt, text, end and record.get("finish_reason", "eos") == "eos"
        if sources is not None:
            if (before := next(sources, None)) is None:
                raise DataError(f"{where}: --source {source} has fewer lines")
            both = {"source": before, "target": line} if line or pairs else {}
            return both, before, line, end
        if not pairs:
            return {"text": line}, None, line, end
        prompt, tab, text = line.partition("\t")
        if not tab:
            raise DataError(f"{where}: no tab between source and target; see --source")
        return {"source": prompt, "target": text}, prompt, text, end

    total, n_tokens, n_texts = 0.0, 0, 0
    with stream(name) as file:
        arrivals = Arrivals(file, parse, "standard input, line " if name == "-" else f"{name}:")
        while (found := arrivals.take(256, True)) is not None:
            values_of = loaded.likelihoods([row[1:] for row in found])
            for (record, *_), values in zip(found, values_of, strict=True):
                if not (record and values):  # blank, or without a token that counts
                    console.answer("")
                    continue
                logprob = math.fsum(values)
                numbers = _likelihood(logprob, len(values))
                line = json.dumps(record | numbers, ensure_ascii=False)
                console.answer(line if as_json else "\t".join(f"{x:.6g}" for x in numbers.values()))
                total, n_tokens, n_texts = total + logprob, n_tokens + len(values), n_texts + 1
    if sources is not None and next(sources, None) is not None:
        raise DataError(f"--source {source} has more lines than there are texts")
    perplexity = _likelihood(total, n_tokens)["perplexity"]
    console.say(
        f"{n_texts:,} texts, {n_tokens:,} tokens: logprob {total:.6g}, perplexity {perplexity:.6g}"
    )


def _likelihood(logprob: float, n: int) -> dict[str, float]:
    mean = logprob / max(1, n)
    perplexity = math.exp(min(700.0, -mean))
    return {"logprob": logprob, "tokens": n, "logprob_per_token": mean, "perplexity": perplexity}
