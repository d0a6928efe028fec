"""One self-contained HTML page: no script, no font, no address outside it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import lmcli
from lmcli.report import figures
from lmcli.report.runs import RunRecord

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td.number { text-align: right; } td.best { font-weight: 700; }
figure { margin: 1rem 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: currentColor; } svg .grid { stroke: #8883; }
svg polyline { fill: none; stroke-width: 1.8; }
.legend span { margin-right: 1rem; } .legend i { display: inline-block; width: .8em; height: .8em;
  margin-right: .3em; border-radius: 2px; }
pre, blockquote { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .7rem;
  border-radius: 4px; margin: .5rem 0; } blockquote b { font-weight: 600; }
.heat td { text-align: right; padding: .15rem .4rem; font-size: 12px; border: 0; }
.heat th { border: 0; font-weight: 400; padding: .15rem .4rem; }
.bars .bar { width: 20rem; } .bars i { display: block; height: .8em; background: #2166ac; }
.note { color: #8a8a8a; font-size: 13px; }
"""
# What a run was asked: (prompt, completion) pairs; looks with text, next words and attention.
Asked = tuple[Sequence[tuple[str, str]], Sequence[Mapping[str, Any]]]
LOWER_IS_BETTER = ("loss", "val_loss", "bits_per_byte", "perplexity")


def show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def columns(records: Sequence[RunRecord]) -> list[str]:
    """Every fact that some run has, in the order they are first seen."""
    return list({key: None for r in records for key in r.facts})


def table(records: Sequence[RunRecord]) -> str:
    names = columns(records)
    best = {
        name: min(values)
        for name in names
        if name.endswith(LOWER_IS_BETTER)
        and len(values := [r.facts[name] for r in records if r.facts.get(name) is not None]) > 1
    }
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    rows = []
    for record in records:
        cells = []
        for name in names:
            value = record.facts.get(name)
            kinds = ["number"] if isinstance(value, int | float) else []
            kinds += ["best"] if value is not None and value == best.get(name) else []
            cells.append(f'<td class="{" ".join(kinds)}">{escape(show(value))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def page(records: Sequence[RunRecord], asked: Sequence[Asked]) -> str:
    """Tables and curves of all runs; of each what it was asked, its evals and its commands."""
    title = ", ".join(r.name for r in records)
    parts = [f"<h1>{escape(title)}</h1>", table(records)]
    for heading, y_label, key, x_key, log in (
        ("Training loss", "nats per token", "loss", "step", "metrics"),
        ("Validation", "bits per byte", "val_bits_per_byte", "step", "metrics"),
        ("Validation by the clock", "bits per byte", "val_bits_per_byte", "minutes", "perf"),
    ):
        series = [
            (r.name, [(row[x_key], row[key]) for row in getattr(r, log) if key in row])
            for r in records
        ]
        parts.append(figures.curves(heading, x_key, y_label, series))
    for record, (samples, looks) in zip(records, asked, strict=True):
        parts.append(f"<h2>{escape(record.name)}</h2>")
        for prompt, completion in samples:
            parts.append(f"<blockquote><b>{escape(prompt)}</b>{escape(completion)}</blockquote>")
        for look in looks:
            parts.append(f"<p>After <q>{escape(look['text'])}</q> it expects</p>")
            parts.append(figures.bars([(n["token"], n["probability"]) for n in look["next"]]))
            if look["words"]:
                parts.append("<p>and looked at (percent, mean over layers and heads)</p>")
                heat = figures.heat_map(look["words"], look["source"], look["weights"])
                parts.append(f'<div class="wide">{heat}</div>')
            parts.append(f'<p class="note">{escape(look["note"])}</p>')
        for result in record.evals:
            data = result["dataset"]
            parts.append(
                f"<p>{escape(data['name'])}, {escape(data['split'])}, step "
                f"{result['checkpoint']['step']}:</p><table>"
            )
            parts += [
                f'<tr><td>{escape(s["name"])}</td><td class="number">{show(s["value"])}</td></tr>'
                for s in result["scores"]
            ]
            how = ", ".join(dict.fromkeys(s["signature"] for s in result["scores"]))
            parts.append(f'</table><p class="note">{escape(how)}</p>')
        parts.append("<p>Made by</p><pre>" + escape("\n".join(record.commands)) + "</pre>")
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f'<body>\n{body}\n<p class="note">lmcli {lmcli.__version__}</p>\n</body></html>\n'
    )
