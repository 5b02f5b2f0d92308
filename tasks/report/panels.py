"""The panels of the figures: each function draws one onto axes that it is given."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from p2rec_core.analysis.comparison import Comparison
from p2rec_core.analysis.results import CellResult, Roles
from p2rec_core.analysis.significance import ALPHA
from tasks.report.names import arm_title, per_cent, short_count
from tasks.report.style import INK, MUTED, PAPER_INK, RULE, SHARES, Look, look, plain_axes

Row = Mapping[str, Any]

_DODGE = 0.16


def forest(
    axes: Axes,
    rows: Sequence[tuple[str, Comparison | None, float | None]],
    limits: tuple[float, float],
    roles: Roles,
) -> None:
    """Relative gains with their intervals, one row each, the value in words at the right.

    Args:
        axes: Where to draw.
        rows: (label, our comparison, the paper's gain); what is None is left out.
        limits: Limits of the gains' axis, the same in every panel of a figure.
        roles: Which arm looks how.
    """
    axes.axvline(0, color=MUTED, linewidth=1.0, zorder=1)
    for y, (_, own, paper) in enumerate(rows):
        if paper is not None:
            axes.plot(100 * paper, y, "o", markersize=7, markerfacecolor="none", color=PAPER_INK, zorder=3)
        if own is None or math.isnan(own.gain):
            axes.text(1.03, y, "–", transform=axes.get_yaxis_transform(), va="center", color=MUTED)
            continue
        style = look(own.arm, roles)
        if not math.isnan(own.low):
            axes.plot([100 * own.low, 100 * own.high], [y, y], color=style.colour, linewidth=2.2, zorder=2)
        solid = own.significant(ALPHA)
        face = style.colour if solid else "#ffffff"
        axes.plot(100 * own.gain, y, style.marker, markersize=7, color=style.colour, markerfacecolor=face, zorder=4)
        axes.text(1.03, y, per_cent(own.gain), transform=axes.get_yaxis_transform(), va="center", color=INK)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(100 * limits[0], 100 * limits[1])
    axes.set_xlabel("relative gain, %")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_signed))
    plain_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", colors=INK)


def groups_of_users(axes: Axes, rows: Sequence[Row], arms: Sequence[str], roles: Roles, x_label: str) -> None:
    """A metric by group of users, one line per arm with intervals.

    Args:
        axes: Where to draw.
        rows: Rows of one dataset and method, see ``group_rows``.
        arms: Arms to show.
        roles: Which arm looks how.
        x_label: What the groups are made by.
    """
    for number, arm in enumerate(arms):
        own = [row for row in rows if row["arm"] == arm]
        style, shift = look(arm, roles), (number - (len(arms) - 1) / 2) * _DODGE
        x = [row["group"] + shift for row in own]
        y = [row["mean"] for row in own]
        _whiskers(axes, x, [(row["low"], row["high"]) for row in own], style)
        axes.plot(x, y, color=style.colour, linewidth=1.0, linestyle=style.line, alpha=0.6)
        axes.plot(x, y, style.marker, color=style.colour, markersize=6, linestyle="none")
    _group_axis(axes, rows, x_label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    plain_axes(axes)


def gains_by_group(axes: Axes, rows: Sequence[Row], arms: Sequence[str], roles: Roles, x_label: str) -> None:
    """Relative gain over Base by group of users, with intervals; a group where Base has no hit has none.

    Intervals that would leave the axes are cut at their edge.
    """
    axes.axhline(0, color=MUTED, linewidth=1.0, zorder=1)
    points = [0.0, 5.0]
    for number, arm in enumerate(arms):
        own = [row for row in rows if row["arm"] == arm and not math.isnan(row.get("gain", math.nan))]
        style, shift = look(arm, roles), (number - (len(arms) - 1) / 2) * _DODGE
        x = [row["group"] + shift for row in own]
        limits = [(100 * row["gain_low"], 100 * row["gain_high"]) for row in own]
        _whiskers(axes, x, limits, style)
        axes.plot(x, [100 * row["gain"] for row in own], style.marker, color=style.colour, markersize=6)
        points.extend(100 * row["gain"] for row in own)
    margin = 0.6 * (max(points) - min(points))
    axes.set_ylim(min(points) - margin, max(points) + margin)
    shown = {row["group"] for row in rows if row["arm"] in arms and not math.isnan(row.get("gain", math.nan))}
    for group in sorted({row["group"] for row in rows} - shown):
        place = axes.get_xaxis_transform()
        axes.text(group, 0.03, "no hits", transform=place, ha="center", va="bottom", color=MUTED)
    _group_axis(axes, rows, x_label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_ylabel("relative gain, %")
    plain_axes(axes)


def learning_curves(axes: Axes, cells: Sequence[CellResult], metric: str, roles: Roles) -> None:
    """A validation metric by epoch, a thin line per seed, a point at the best epoch; cut below half of the best."""
    top = 0.0
    for result in cells:
        points = [(epoch, value) for epoch, name, value in result.curve if name == metric and math.isfinite(value)]
        if not points:
            continue
        style = look(result.cell.arm, roles)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=style.colour, linestyle=style.line, linewidth=1.1, alpha=0.85)
        best = max(points, key=lambda point: (point[1], -point[0]))
        top = max(top, best[1])
        axes.plot(*best, style.marker, color=style.colour, markersize=6, markeredgecolor="#ffffff", zorder=4)
    axes.set_xlabel("epoch")
    if top > 0:
        axes.set_ylim(0.5 * top, 1.03 * top)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    plain_axes(axes)


def shares(axes: Axes, rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """Stacked bars of C1, C2, C3, one row per label."""
    for y, (_, values) in enumerate(rows):
        left = 0.0
        for case, (fill, ink) in zip(("C1", "C2", "C3"), SHARES, strict=True):
            width = 100 * values[case]
            axes.barh(y, width, left=left, color=fill, height=0.62, edgecolor="#ffffff", linewidth=1.5)
            if width >= 9:
                axes.text(left + width / 2, y, f"{width:.0f} %", ha="center", va="center", color=ink)
            left += width
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of items, %")
    axes.tick_params(length=0)
    axes.tick_params(axis="y", colors=INK)
    axes.spines["left"].set_visible(False)


def cost_dots(
    axes: Axes,
    pairs: Sequence[tuple[str, float | None, float | None]],
    looks: tuple[Look, Look],
    noun: str,
    words: Callable[[float], str],
) -> None:
    """P2Rec's cost and E4SRec's on one logarithmic axis, with the ratio between them.

    Args:
        axes: Where to draw.
        pairs: (phase, P2Rec, E4SRec); None = not measured.
        looks: Of P2Rec and of E4SRec.
        noun: What is counted.
        words: Writes a value.
    """
    known = [value for _, *values in pairs for value in values if value is not None and value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    axes.set_xscale("log")
    axes.set_xlim(low / 2.2, high * 2.2)
    for y, (_, *values) in enumerate(pairs):
        found = [value for value in values if value is not None and value > 0]
        if len(found) == 2:
            axes.plot(found, [y, y], color=RULE, linewidth=3, zorder=1)
            ratio = found[1] / found[0]
            axes.text(math.sqrt(found[0] * found[1]), y - 0.16, f"× {ratio:.3g}", ha="center", va="bottom", color=INK)
        for value, style in zip(values, looks, strict=True):
            if value is not None and value > 0:
                axes.plot(value, y, style.marker, color=style.colour, markersize=9, zorder=3)
                axes.text(value, y + 0.17, words(value), ha="center", va="top", color=style.colour, fontweight="bold")
    axes.set_yticks(range(len(pairs)), [phase for phase, *_ in pairs])
    axes.set_ylim(len(pairs) - 0.35, -0.65)
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(noun)
    plain_axes(axes, grid="x")
    axes.tick_params(axis="y", colors=INK)
    axes.spines["left"].set_visible(False)


def arm_labels(arms: Sequence[str], roles: Roles) -> list[tuple[str, Look]]:
    """(title, look) of every arm, for a legend."""
    return [(arm_title(arm, roles), look(arm, roles)) for arm in arms]


def _whiskers(axes: Axes, x: Sequence[float], limits: Sequence[tuple[float, float]], style: Look) -> None:
    for place, (low, high) in zip(x, limits, strict=True):
        if not (math.isnan(low) or math.isnan(high)):
            axes.plot([place, place], [low, high], color=style.colour, linewidth=1.8)


def _group_axis(axes: Axes, rows: Sequence[Row], x_label: str) -> None:
    names = dict(sorted({row["group"]: row["name"] for row in rows}.items()))
    axes.set_xticks(list(names), list(names.values()))
    axes.set_xlim(min(names, default=1) - 0.5, max(names, default=1) + 0.5)
    axes.set_xlabel(x_label)


def _signed(value: float, _: object) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"
