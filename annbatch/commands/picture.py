"""A bar chart as SVG, written by hand: the demo needs no plotting library."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Bars", "bar_charts"]

# Readable side by side, also for who does not tell red from green.
_COLORS = ("#4477aa", "#ee9933", "#aa4466", "#66aa88")
_WIDTH, _LEFT, _BAR, _GAP, _HEAD = 720, 150, 11, 8, 58


class Bars(NamedTuple):
    """One chart.

    Attributes
    ----------
    title
        What is shown.
    values
        Per label one value of each series, 0 or more.
    largest
        The value of a bar of full length.
    form
        How a value is written, as for `format`.
    """

    title: str
    values: Mapping[str, Sequence[float]]
    largest: float
    form: str


def bar_charts(series: Sequence[str], charts: Sequence[Bars]) -> str:
    """Draw charts below each other.

    Parameters
    ----------
    series
        Names of the series, in the order of the values.
    charts
        The charts.

    Returns
    -------
    str
        An SVG document.
    """
    parts: list[str] = []
    y = 0
    for chart in charts:
        parts.append(_text(10, y + 24, chart.title, size=15))
        for number, name in enumerate(series):
            x = 10 + 190 * number
            parts.append(_box(x, y + 34, 10, 10, number))
            parts.append(_text(x + 15, y + 43, name))
        y += _HEAD
        for label, values in chart.values.items():
            parts.append(_text(_LEFT - 8, y + _BAR * len(values) / 2 + 4, label, anchor="end"))
            for number, value in enumerate(values):
                known = value == value  # not NaN
                length = (_WIDTH - _LEFT - 70) * min(value / chart.largest, 1) if known else 0
                parts.append(_box(_LEFT, y, length, _BAR - 2, number))
                parts.append(
                    _text(_LEFT + length + 5, y + _BAR - 2, format(value, chart.form) if known else "none", size=10)
                )
                y += _BAR
            y += _GAP
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{inside}\n</svg>\n'
    )


def _box(x: float, y: float, width: float, height: float, number: int) -> str:
    color = _COLORS[number % len(_COLORS)]
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
