"""A few plots as SVG, written by hand: no library is worth it for three pictures. They follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 44, 56
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2")
ON_DARK = ("#7aa7ff", "#f0a35e", "#4fd1c5", "#b794f6", "#ff8f99", "#67d3e8")
PAPER, INK, QUIET, GRID, AXIS = "#ffffff", "#111827", "#4b5563", "#e5e7eb", "#6b7280"
_DARK = {PAPER: "#171b22", INK: "#e8ebf0", QUIET: "#a0a9b6", GRID: "#2c333d", AXIS: "#8b95a3"}
_DARK |= dict(zip(COLOURS, ON_DARK, strict=True))
# Attributes have the light colours, for whatever shows an SVG; a browser on a dark screen takes the others.
STYLE = "".join(f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}' for light, dark in _DARK.items())


@dataclass(frozen=True)
class Series:
    """Points (x, y) in the order of x; ``joined`` by a line or not. ``marked`` are drawn larger, with a label each."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    marked: Sequence[tuple[float, float, str]] = ()


@dataclass(frozen=True)
class Axis:
    """``unit`` follows each number; milliseconds are written as seconds from 1,000 on. A logarithmic axis shows values
    above 0 only, and a ``whole`` one has whole numbers."""

    title: str
    unit: str = ""
    logarithmic: bool = False
    whole: bool = False
    low: float | None = None
    high: float | None = None


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """One plot as an SVG document of 640 by 400. Points that are no numbers are left out."""
    scaled = [_kept(one, x, y) for one in series]
    places = [place for one in scaled for place in [*one.points, *((px, py) for px, py, _ in one.marked)]]
    xs = [px for px, _ in places]
    ys = [py for _, py in places]
    across, x_ticks = _scale(x, xs, LEFT, WIDTH - RIGHT)
    up, y_ticks = _scale(y, ys, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>@media (prefers-color-scheme: dark){{{STYLE}}}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600" fill="{INK}">{escape(title)}</text>',
    ]
    for value in x_ticks:
        at = across(value)
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="{GRID}"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 17, _label(value, x.unit), "middle"))
    for value in y_ticks:
        at = up(value)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 8, at + 4, _label(value, y.unit), "end"))
    parts.append(
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="{AXIS}" stroke-width="1.2"/>'
    )
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x.title, "middle", INK))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="13" y="{middle}" text-anchor="middle" fill="{INK}" transform="rotate(-90 13 {middle})">'
        f"{escape(y.title)}</text>"
    )
    for number, one in enumerate(scaled):
        colour = COLOURS[number % len(COLOURS)]
        dots = [(across(px), up(py)) for px, py in one.points]
        if one.joined and len(dots) > 1:
            # So that a line shows where another one lies on it, and without colours.
            dashes = f' stroke-dasharray="{6 - number} 4"' if 0 < number < 5 else ""
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in dots)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}" fill-opacity="0.75"/>' for px, py in dots]
        for px, py, label in one.marked:
            ax, ay = across(px), up(py)
            parts.append(
                f'<circle cx="{ax:.1f}" cy="{ay:.1f}" r="6.5" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            )
            end = "end" if ax > WIDTH * 0.6 else "start"
            shift = -11 if end == "end" else 11
            parts.append(_text(ax + shift, ay - 10 if ay > TOP + 24 else ay + 20, label, end, INK))
    if len(scaled) > 1:
        at = float(LEFT)
        for number, one in enumerate(scaled):
            colour = COLOURS[number % len(COLOURS)]
            parts.append(f'<rect x="{at:.0f}" y="29" width="10" height="10" fill="{colour}"/>')
            parts.append(_text(at + 14, 38, one.name, "start"))
            at += 14 + 7.0 * len(one.name) + 16
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _kept(one: Series, x: Axis, y: Axis) -> Series:
    def good(point: tuple[float, float] | tuple[float, float, str]) -> bool:
        px, py = point[0], point[1]
        if not (math.isfinite(px) and math.isfinite(py)):
            return False
        return not (x.logarithmic and px <= 0) and not (y.logarithmic and py <= 0)

    return Series(one.name, [p for p in one.points if good(p)], one.joined, [p for p in one.marked if good(p)])


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float
) -> tuple[Callable[[float], float], Sequence[float]]:
    """The place of a value between ``start`` and ``end``, and the values to write at the axis."""
    low = axis.low if axis.low is not None else min(values, default=1.0 if axis.logarithmic else 0.0)
    high = axis.high if axis.high is not None else max(values, default=10.0 if axis.logarithmic else 1.0)
    if axis.logarithmic:
        bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        top = max(top, bottom + 1)
        ticks = [10.0**power for power in range(bottom, top + 1)]
        return lambda v: start + (math.log10(v) - bottom) / (top - bottom) * (end - start), ticks
    if high <= low:
        high = low + 1.0
    raw = max((high - low) / 5, 1.0 if axis.whole else 0.0)
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw - 1e-12 and not (axis.whole and size * m % 1))
    first = math.floor(low / step + 1e-9) * step
    last = math.ceil(high / step - 1e-9) * step
    count = round((last - first) / step)
    ticks = [first + step * n for n in range(count + 1)]
    return lambda v: start + (v - first) / (last - first) * (end - start), ticks


def _text(x: float, y: float, words: str, anchor: str, colour: str = QUIET) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _label(value: float, unit: str) -> str:
    if unit == " ms" and value >= 1000:
        return f"{_number(value / 1000)} s"
    return _number(value) + unit


def _number(value: float) -> str:
    if value != 0 and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:,.6g}"
