"""Plots as SVG, inline in a page: colours come from the page, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 24


def lines(
    series: Sequence[tuple[str, Sequence[float | None]]], ticks: Sequence[str], unit: str, label: str
) -> str:
    """Curves over time. series: name and values, None where there is none; ticks: along the time."""
    top = _nice(max((value for _, values in series for value in values if value is not None), default=0.0))
    parts = [_frame(top, ticks, unit, label)]
    for index, (name, values) in enumerate(series):
        path, pen = [], "M"
        for step, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{_x(step, len(values)):.1f},{_y(value, top):.1f}")
            pen = "L"
        parts.append(f'<path class="s{index % 6}" d="{"".join(path)}"><title>{escape(name)}</title></path>')
    return _svg(parts, label) + _legend([name for name, _ in series])


def stacks(series: Sequence[tuple[str, Sequence[float]]], ticks: Sequence[str], unit: str, label: str) -> str:
    """Bars over time, one series on the other."""
    count = len(series[0][1]) if series else 0
    top = _nice(max((sum(values[i] for _, values in series) for i in range(count)), default=0.0))
    width = (WIDTH - _LEFT - _RIGHT) / max(count, 1)
    parts = [_frame(top, ticks, unit, label)]
    for step in range(count):
        base = 0.0
        for index, (name, values) in enumerate(series):
            if values[step] <= 0:
                continue
            y, below = _y(base + values[step], top), _y(base, top)
            x = _LEFT + step * width
            parts.append(
                f'<rect class="f{index % 6}" x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}"'
                f' height="{max(below - y, 0.5):.1f}">'
                f"<title>{escape(name)}: {values[step]:,.0f}</title></rect>"
            )
            base += values[step]
    return _svg(parts, label) + _legend([name for name, _ in series])


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars: name, value and what is written beside it, on a scale that shows small ones too."""
    height = 26 * len(rows) + 4
    most = max((value for _, value, _ in rows), default=1.0) or 1.0
    parts = []
    for index, (name, value, words) in enumerate(rows):
        y = 4 + 26 * index
        width = max(value / most * 330, 1.5)
        parts.append(
            f'<text class="t" x="150" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="f{index % 6}" x="158" y="{y}" width="{width:.1f}" height="18"/>'
            f'<text class="t" x="{158 + width + 6:.1f}" y="{y + 14}">{escape(words)}</text>'
        )
    return _svg(parts, label, height)


def _frame(top: float, ticks: Sequence[str], unit: str, label: str) -> str:
    del label
    parts = []
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        parts.append(f'<line class="g" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="t" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    for step, tick in enumerate(ticks):
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(len(ticks) - 1, 1)
        anchor = "start" if step == 0 else "end" if step == len(ticks) - 1 else "middle"
        parts.append(
            f'<text class="t" x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(tick)}</text>'
        )
    parts.append(f'<text class="t" x="{_LEFT + 4}" y="{_TOP + 8}">{escape(unit)}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], label: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(f'<span><i class="b{i % 6}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def _x(step: int, count: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step + 0.5) / max(count, 1)


def _y(value: float, top: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(value / top, 1.0))


def _nice(most: float) -> float:
    """A round number that is not below."""
    if most <= 0:
        return 1.0
    base = 10.0 ** math.floor(math.log10(most))
    return next(base * factor for factor in (1, 2, 4, 5, 8, 10) if base * factor >= most)


def _short(value: float) -> str:
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{name}"
    return f"{value:g}"
