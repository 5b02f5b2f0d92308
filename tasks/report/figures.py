"""The figures of the report, each a row of panels that share a legend."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from p2rec_core.analysis.comparison import Comparison, Scores
from p2rec_core.analysis.paper import ARMS, paper_gain
from p2rec_core.analysis.results import method_order
from p2rec_core.analysis.significance import PRIMARY_METRIC
from p2rec_core.analysis.tables import activity_table, agreement_table, cost_table, frequency_table, targets_table
from tasks.report import panels
from tasks.report.names import arm_title, dataset_title, interval, method_title, per_cent, seconds, short_count
from tasks.report.style import MUTED, PAPER_INK, RIVAL, SHARES, Look, inline_svg, look, new_figure, settle

_WIDTH = 3.75


@dataclass(frozen=True)
class Mark:
    """An entry of a legend.

    Attributes:
        label: What it stands for.
        colour: Its colour.
        marker: Its marker.
        filled: Whether the marker is filled.
    """

    label: str
    colour: str
    marker: str
    filled: bool = True


@dataclass(frozen=True)
class Panel:
    """One panel of a figure.

    Attributes:
        title: Stands above it.
        alt: What it shows, in words, with its values.
        draw: Draws it onto axes.
        height: In inches.
        width: In inches.
    """

    title: str
    alt: str
    draw: Callable[[Axes], None]
    height: float
    width: float = _WIDTH

    def svg(self, prefix: str) -> str:
        """The panel alone as an SVG element; call in ``house_style``."""
        figure = new_figure(self.width, self.height)
        axes = figure.add_subplot()
        self.draw(axes)
        axes.set_title(self.title)
        return inline_svg(settle(figure), prefix)


@dataclass(frozen=True)
class FigureSpec:
    """A figure.

    Attributes:
        name: Name of its files.
        title: Its headline.
        caption: How to read it.
        panels: Its panels, in order.
        legend: What colours and markers mean.
        columns: Panels beside each other in the files.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Sequence[Mark] = field(default=())
    columns: int = 3

    def combined(self) -> Figure:
        """All panels in one figure; call in ``house_style``."""
        columns = min(self.columns, len(self.panels))
        n_rows = math.ceil(len(self.panels) / columns)
        height = max(panel.height for panel in self.panels)
        figure = new_figure(max(p.width for p in self.panels) * columns, height * n_rows + 0.45)
        grid = figure.subplots(n_rows, columns, squeeze=False)
        for axes in grid.flat[len(self.panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, self.panels, strict=False):
            panel.draw(axes)
            axes.set_title(panel.title)
        if self.legend:
            _add_legend(figure, self.legend)
        return settle(figure)


def all_figures(scores: Scores) -> list[FigureSpec]:
    """Every figure that there is data for."""
    found = (
        overview(scores),
        cost(scores),
        agreement(scores),
        activity(scores),
        frequency(scores),
        targets(scores),
        ablations(scores),
        curves(scores),
    )
    return [figure for figure in found if figure is not None]


def overview(scores: Scores) -> FigureSpec | None:
    """Gains of +P2Rec over Base and over +CI in every cell, next to the paper's."""
    roles = scores.results.roles
    comparisons = {(c.dataset, c.method, c.reference): c for c in scores.table("keep") if c.arm == roles.p2rec}
    rows: dict[str, list[tuple[str, Comparison | None, float | None]]] = {}
    for dataset, method in scores.backbones:
        for reference, of_paper in zip((roles.base, roles.ci), ARMS[:2], strict=True):
            own = comparisons.get((dataset, method, reference))
            paper = paper_gain(dataset, method, ARMS[2], of_paper, PRIMARY_METRIC)
            label = f"{method_title(method)} vs {arm_title(reference, roles)}"
            if own is not None:
                rows.setdefault(dataset, []).append((label, own, paper))
    if not rows:
        return None
    limits = _limits([row for part in rows.values() for row in part])
    height = 1.0 + 0.34 * max(len(part) for part in rows.values())
    found = [
        Panel(_title(scores, dataset), _gains_in_words(part), partial(_forest, part, limits, scores), height)
        for dataset, part in rows.items()
    ]
    caption = (
        f"Relative gain of +P2Rec in test {PRIMARY_METRIC}, seen items eligible. Bars: 95 % interval over users. "
        "Filled: significant after Holm's correction. Circles: the paper's gain."
    )
    return FigureSpec("overview", "Gain of +P2Rec, cell by cell", caption, found, _forest_legend(scores, paper=True))


def ablations(scores: Scores) -> FigureSpec | None:
    """Gain of every arm over Base."""
    roles = scores.results.roles
    rows: dict[tuple[str, str], list[tuple[str, Comparison | None, float | None]]] = {}
    for c in scores.against_base():
        if c.reference == roles.base:
            rows.setdefault((c.dataset, c.method), []).append((arm_title(c.arm, roles), c, None))
    if not rows or all(c.arm in roles.main for part in rows.values() for _, c, _ in part if c is not None):
        return None
    limits = _limits([row for part in rows.values() for row in part])
    height = 1.0 + 0.34 * max(len(part) for part in rows.values())
    found = [
        Panel(
            f"{method_title(method)} · {_title(scores, dataset)}",
            _gains_in_words(part),
            partial(_forest, part, limits, scores),
            height,
        )
        for dataset, method in _by_method(scores)
        if (part := rows.get((dataset, method))) is not None
    ]
    caption = (
        f"Relative gain over Base in test {PRIMARY_METRIC}, seen items eligible, of every arm. Bars: 95 % interval "
        "over users. Filled: significant after Holm's correction."
    )
    return FigureSpec("ablations", "What the gain comes from", caption, found, (), _n_columns(scores))


def activity(scores: Scores) -> FigureSpec | None:
    """The metric by activity group (paper, Fig. 6)."""
    caption = (
        f"Test {PRIMARY_METRIC} of users in five groups of equal size, by the number of their training interactions, "
        "ascending; labels give the range. Bars: 95 % interval over the users of a group, seeds averaged."
    )
    rows, arms = activity_table(scores).rows, scores.results.roles.main
    found = _group_panels(scores, rows, arms, panels.groups_of_users, "training interactions of the user", "mean")
    title = "Users by activity (the paper's Fig. 6)"
    return _group_figure(scores, "fig6-activity", title, caption, found, arms)


def frequency(scores: Scores) -> FigureSpec | None:
    """The gain by frequency of the target item."""
    caption = (
        f"Relative gain over Base in test {PRIMARY_METRIC}, by the training interactions of the item that the "
        "user should get. Cold: none. Bars: 95 % interval over users, cut at the edge where they are longer."
    )
    rows, arms = frequency_table(scores).rows, scores.results.roles.main[1:]
    found = _group_panels(scores, rows, arms, panels.gains_by_group, "training interactions of the target item", "gain")
    return _group_figure(scores, "item-frequency", "Rare and frequent items", caption, found, arms)


def targets(scores: Scores) -> FigureSpec | None:
    """The gain where the target is new to the user, and where the user comes back to it; None where nobody does."""
    rows = targets_table(scores).rows
    mixed = {row["dataset"] for row in rows if row["name"] == "had before"}
    rows, arms = [row for row in rows if row["dataset"] in mixed], scores.results.roles.main[1:]
    caption = (
        f"Relative gain over Base in test {PRIMARY_METRIC}, seen items eligible, where the user never had the item "
        "that comes next, and where the user comes back to one. Bars: 95 % interval over users, cut at the edge where "
        "they are longer."
    )
    found = _group_panels(scores, rows, arms, panels.gains_by_group, "the item that the user should get", "gain")
    return _group_figure(scores, "item-targets", "New items, and those that people come back to", caption, found, arms)


def curves(scores: Scores) -> FigureSpec | None:
    """Validation metric by epoch."""
    results = scores.results
    found, shown = [], set()
    for dataset, method in _by_method(scores):
        arms = [arm for arm in results.arms_of(dataset, method) if arm in results.roles.main]
        cells = [cell for arm in arms for cell in results.of(dataset, method, arm) if _has_curve(cell.curve)]
        if not cells:
            continue
        shown |= {cell.cell.arm for cell in cells}
        words = [f"{arm_title(c.cell.arm, results.roles)} seed {c.cell.seed}: {c.validation:.4f}" for c in cells]
        title = f"{method_title(method)} · {_title(scores, dataset)}"
        found.append(Panel(title, f"Best validation: {'; '.join(words)}.", partial(_curves, cells, scores), 2.6))
    if not found:
        return None
    caption = (
        f"Validation {PRIMARY_METRIC} after every epoch, one line per seed; the point is the best epoch. "
        "The axis starts at half of the best value."
    )
    legend = _arm_legend(scores, [arm for arm in results.roles.main if arm in shown])
    return FigureSpec("learning-curves", "Learning curves", caption, found, legend, _n_columns(scores))


def agreement(scores: Scores) -> FigureSpec | None:
    """Shares of C1, C2 and C3 (paper, Fig. 5)."""
    results = scores.results
    rows = agreement_table(results).rows
    if not rows:
        return None
    several = len({row["arm"] for row in rows}) > 1
    labelled = [
        (_title(scores, r["dataset"]) + (f"\n{arm_title(r['arm'], results.roles)}" if several else ""), r) for r in rows
    ]
    words = "; ".join(
        f"{label}: " + ", ".join(f"{case} {100 * r[case]:.0f} %" for case in ("C1", "C2", "C3"))
        for label, r in labelled
    )
    caption = (
        "C1: the language model's most likely category of an item is its cluster. C2: the cluster is among its three "
        "most likely. C3: neither."
    )
    legend = [Mark(case, fill, "s") for case, (fill, _) in zip(("C1", "C2", "C3"), SHARES, strict=True)]
    panel = Panel("", words, lambda axes: panels.shares(axes, labelled), 1.2 + 0.5 * len(rows), width=5.2)
    title = "Category against cluster (the paper's Fig. 5)"
    return FigureSpec("fig5-agreement", title, caption, [panel], legend)


def cost(scores: Scores) -> FigureSpec | None:
    """Tokens and seconds of the language model per epoch (paper, Fig. 4)."""
    rows = cost_table(scores.results).rows
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    measures = (("n_tokens", "tokens", short_count), ("seconds_per_epoch", "seconds", seconds))
    looks = (look(scores.results.roles.p2rec, scores.results.roles), RIVAL)
    found = []
    for column, noun, words in measures:
        for dataset in datasets:
            pairs = [(phase.title(), *_pair(rows, dataset, phase, column)) for phase in ("training", "inference")]
            if all(value is None for _, *values in pairs for value in values):
                continue
            draw = partial(_cost, pairs, looks, noun, words)
            found.append(Panel(f"{_title(scores, dataset)} · {noun}", _cost_in_words(pairs, words), draw, 2.5))
    if not found:
        return None
    caption = (
        "What the language model has to do in one epoch of training and for one inference, on a logarithmic axis, "
        "P2Rec (one example per user; one per item) beside E4SRec (one per interaction; one per user). × is the ratio."
    )
    legend = [Mark("P2Rec", looks[0].colour, looks[0].marker), Mark("E4SRec", RIVAL.colour, RIVAL.marker)]
    title = "What the language model costs (the paper's Fig. 4)"
    return FigureSpec("fig4-cost", title, caption, found, legend, len(datasets) if len(datasets) > 1 else 2)


def _group_panels(
    scores: Scores,
    rows: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    draw: Callable[..., None],
    x_label: str,
    column: str,
) -> list[Panel]:
    found = []
    for dataset, method in _by_method(scores):
        own = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
        shown = [arm for arm in arms if any(row["arm"] == arm and "gain" in row for row in own)]
        if not shown:
            continue
        words = "; ".join(
            f"{arm_title(arm, scores.results.roles)}: "
            + ", ".join(f"{row['name']}: {_in_words(row.get(column), column)}" for row in own if row["arm"] == arm)
            for arm in shown
        )
        title = f"{method_title(method)} · {_title(scores, dataset)}"
        found.append(Panel(title, words + ".", partial(_groups, draw, own, shown, scores, x_label), 2.8))
    return found


def _group_figure(
    scores: Scores, name: str, title: str, caption: str, found: list[Panel], arms: Sequence[str]
) -> FigureSpec | None:
    there = {cell.cell.arm for cell in scores.results.cells}
    legend = _arm_legend(scores, [arm for arm in arms if arm in there])
    return FigureSpec(name, title, caption, found, legend, _n_columns(scores)) if found else None


def _groups(
    draw: Callable[..., None],
    rows: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    scores: Scores,
    x_label: str,
    axes: Axes,
) -> None:
    draw(axes, rows, arms, scores.results.roles, x_label)


def _forest(rows: Sequence[Any], limits: tuple[float, float], scores: Scores, axes: Axes) -> None:
    panels.forest(axes, rows, limits, scores.results.roles)


def _curves(cells: Sequence[Any], scores: Scores, axes: Axes) -> None:
    panels.learning_curves(axes, cells, PRIMARY_METRIC, scores.results.roles)


def _cost(pairs: Sequence[Any], looks: tuple[Look, Look], noun: str, words: Callable[[float], str], axes: Axes) -> None:
    panels.cost_dots(axes, pairs, looks, noun, words)


def _pair(rows: Sequence[Mapping[str, Any]], dataset: str, phase: str, column: str) -> list[float | None]:
    values: list[float | None] = []
    for method in ("p2rec", "e4srec"):
        own = [r for r in rows if (r["dataset"], r["phase"], r["method"]) == (dataset, phase, method)]
        values.append(own[0][column] if own else None)
    return values


def _cost_in_words(pairs: Sequence[Any], words: Callable[[float], str]) -> str:
    def text(value: float | None) -> str:
        return "not measured" if value is None else words(value)

    return "; ".join(f"{phase}: P2Rec {text(own)}, E4SRec {text(rival)}" for phase, own, rival in pairs) + "."


def _limits(rows: Sequence[tuple[str, Comparison | None, float | None]]) -> tuple[float, float]:
    """Limits of an axis of gains that hold every point and, unless they are very wide, every interval."""
    points = [c.gain for _, c, _ in rows if c is not None] + [p for _, _, p in rows if p is not None]
    reach = 1.8 * max([0.01, *(abs(point) for point in points if not math.isnan(point))])
    ends = [end for _, c, _ in rows if c is not None for end in (c.low, c.high) if not math.isnan(end)]
    values = [0.0, *(p for p in points if not math.isnan(p)), *(min(max(end, -reach), reach) for end in ends)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def _gains_in_words(rows: Sequence[tuple[str, Comparison | None, float | None]]) -> str:
    words = []
    for label, own, paper in rows:
        text = "not there" if own is None else f"{per_cent(own.gain)} ({interval(own.low, own.high)})"
        words.append(f"{label}: {text}" + ("" if paper is None else f", paper {per_cent(paper)}"))
    return "; ".join(words) + "."


def _in_words(value: float | None, column: str) -> str:
    if value is None or math.isnan(value):
        return "none"
    return per_cent(value) if column == "gain" else f"{value:.4f}"


def _by_method(scores: Scores) -> list[tuple[str, str]]:
    """(dataset, method) of every method, one method after the other, so that a column of panels is a dataset."""
    results = scores.results
    found = [(d, m) for d in results.dataset_names() for m in results.methods(d)]
    return sorted(found, key=lambda pair: (method_order(pair[1]), pair[0]))


def _n_columns(scores: Scores) -> int:
    n_datasets = len(scores.results.dataset_names())
    return n_datasets if n_datasets in (2, 3) else 2 if n_datasets == 1 else 3


def _title(scores: Scores, dataset: str) -> str:
    return dataset_title(dataset, scores.results.datasets[dataset])


def _has_curve(curve: Sequence[tuple[int, str, float]]) -> bool:
    return any(name == PRIMARY_METRIC for _, name, _ in curve)


def _arm_legend(scores: Scores, arms: Sequence[str]) -> list[Mark]:
    return [Mark(title, own.colour, own.marker) for title, own in panels.arm_labels(arms, scores.results.roles)]


def _forest_legend(scores: Scores, *, paper: bool) -> list[Mark]:
    own = look(scores.results.roles.p2rec, scores.results.roles)
    marks = [
        Mark("ours, significant", own.colour, own.marker),
        Mark("ours, not significant", own.colour, own.marker, filled=False),
    ]
    return [*marks, Mark("the paper", PAPER_INK, "o", filled=False)] if paper else marks


def _add_legend(figure: Figure, marks: Sequence[Mark]) -> None:
    """Put the legend above the panels, in as many columns as the figure is wide enough for."""
    handles = [_handle(mark) for mark in marks]
    for n_columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=n_columns)
        if n_columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _handle(mark: Mark) -> Line2D:
    face = mark.colour if mark.filled else "none"
    return Line2D(
        [], [], color=mark.colour or MUTED, marker=mark.marker, markerfacecolor=face, linestyle="none", label=mark.label
    )
