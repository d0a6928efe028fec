"""Figures as SVG text, drawn by hand so that a page needs nothing else."""

import math
from collections.abc import Sequence
from html import escape

Series = tuple[str, Sequence[tuple[float, float]]]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 60, 40, 16
COLOURS = ("#2166ac", "#d6604d", "#1b7837", "#8073ac", "#b35806", "#01665e", "#c51b7d", "#4d4d4d")


def ticks(low: float, high: float) -> list[float]:
    """About 5 round numbers from low to high (1, 2 or 5 times a power of ten apart)."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Lines through (x, y) points, one colour each; empty text where there is no point."""
    finite = [(n, [p for p in points if all(map(math.isfinite, p))]) for n, points in series]
    drawn = [(name, points) for name, points in finite if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    low, high, bottom, top = min(xs), max(xs), min(ys), max(ys)
    pad = (top - bottom) * 0.05 or 0.5
    bottom, top = bottom - pad, top + pad

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low) / (high - low or 1) * (WIDTH - LEFT - 12)
        return across, TOP + (top - y) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts, legend = [], []
    for y in ticks(bottom, top):
        down = at(low, y)[1]
        ends = f'x1="{LEFT}" x2="{WIDTH - 12}" y1="{down:.1f}" y2="{down:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(_text(LEFT - 6, down + 4, f"{y:.4g}", "end"))
    for x in ticks(low, high):
        parts.append(_text(at(x, bottom)[0], HEIGHT - BOTTOM + 16, f"{x:.6g}"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_label))
    turned = _text(0, 0, y_label)
    parts.append(f'<g transform="translate(13 {HEIGHT / 2:.0f}) rotate(-90)">{turned}</g>')
    for i, (name, points) in enumerate(drawn):
        colour = COLOURS[i % len(COLOURS)]
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}</span>')
        line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
        for x, y in points if len(points) <= 60 else points[-1:]:
            across, down = at(x, y)
            parts.append(
                f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.6" fill="{colour}">'
                f"<title>{escape(name)}: {x:.6g}, {y:.5g}</title></circle>"
            )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<p class="legend">{" ".join(legend)}</p></figure>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def heat_map(
    words: Sequence[str], source: Sequence[str], weights: Sequence[Sequence[float]]
) -> str:
    """A table of shares from 0 to 1: row = the word that looks, column = the word looked at."""
    head = "".join(f"<th><span>{escape(word)}</span></th>" for word in source)
    rows = []
    for i, word in enumerate(words):
        cells = "".join(
            f'<td style="background:rgb(214 96 77 / {value:.3f})" '
            f'title="{escape(word)} looks at {escape(source[j])}: {value:.3f}">'
            f"{100 * value:.0f}</td>"
            for j, value in enumerate(weights[i][: i + 1] if source == words else weights[i])
        )
        rows.append(f"<tr><th>{escape(word)}</th>{cells}</tr>")
    return f'<table class="heat"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Names with shares from 0 to 1."""
    most = max((value for _, value in rows), default=0) or 1
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{value:.4f}</td>"
        f'<td class="bar"><i style="width:{100 * value / most:.1f}%"></i></td></tr>'
        for name, value in rows
    )
    return f'<table class="bars">{lines}</table>'
