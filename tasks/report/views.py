"""The tables of the page: what stands in which cell, as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2rec_core.analysis.comparison import ArmScores, Comparison, Scores
from p2rec_core.analysis.paper import literature_rows, paper_row
from p2rec_core.analysis.significance import ALPHA, METRICS, PRIMARY_METRIC
from p2rec_core.analysis.tables import cells_table, cost_table, mean_gains_table
from p2rec_core.metrics import user_metric
from tasks.report.files import json_for_reading
from tasks.report.names import (
    NONE,
    arm_title,
    count,
    dataset_title,
    interval,
    listed,
    method_title,
    metric,
    p_value,
    per_cent,
    seconds,
)


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        main: What it says.
        notes: Smaller lines below.
        style: Names of styles of the page's style sheet.
        marks: Marks of significance, which hang behind the number.
    """

    main: str
    notes: Sequence[str] = ()
    style: str = ""
    marks: str = ""


@dataclass(frozen=True)
class Line:
    """One row of a table.

    Attributes:
        title: Heading of the row.
        entries: Its cells.
        style: Names of styles.
        note: Smaller text after the heading.
    """

    title: str
    entries: Sequence[Entry]
    style: str = ""
    note: str = ""


@dataclass(frozen=True)
class View:
    """A table.

    Attributes:
        caption: Its caption.
        columns: Headings; the first is that of the rows.
        lines: Its rows.
        numeric: Whether cells are numbers, to be aligned at the right.
        note: Text below it.
    """

    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    numeric: bool = True
    note: str = field(default="")


def results_view(scores: Scores, dataset: str, seen: str) -> View:
    """Table 2 of one dataset under one seen policy, with the paper's values where it has them (``keep``)."""
    results, roles = scores.results, scores.results.roles
    by_pair = {
        (c.method, c.arm, c.reference, name): c
        for name in METRICS
        for c in scores.table(seen, name)
        if c.dataset == dataset
    }
    shown = [
        own
        for method in results.methods(dataset)
        for arm in (results.arms_of(dataset, method) if method in roles.standalone else roles.main)
        if (own := scores.of(dataset, method, arm, seen)) is not None
    ]
    ranking = {name: sorted({round(own.mean(name), 12) for own in shown}, reverse=True) for name in METRICS}
    lines = []
    for own in shown:
        first = own.arm == roles.base or own.method in roles.standalone
        title = method_title(own.method)
        if own.method not in roles.standalone:
            title = f"{title} {arm_title(own.arm, roles)}"
        entries = [Entry(count(len(own.seeds)))]
        entries += [_metric_entry(own, name, by_pair, ranking[name], scores) for name in METRICS]
        for reference in (roles.base, roles.ci):
            entries.append(_gain_entry(by_pair.get((own.method, own.arm, reference, PRIMARY_METRIC))))
        lines.append(Line(title, entries, "first" if first else "lead" if own.arm == roles.p2rec else ""))
    lines += [*_literature(dataset, seen), *_no_learning(scores, dataset, seen)]
    columns = ["Method", "Seeds", *METRICS, f"{PRIMARY_METRIC} over Base", "over +CI"]
    return View(dataset_title(dataset, results.datasets[dataset]), columns, lines)


def _metric_entry(
    own: ArmScores,
    name: str,
    by_pair: Mapping[tuple[str, str, str, str], Comparison],
    ranking: Sequence[float],
    scores: Scores,
) -> Entry:
    place = ranking.index(round(own.mean(name), 12)) if not math.isnan(own.mean(name)) else 9
    comparison = by_pair.get((own.method, own.arm, scores.results.roles.base, name))
    notes = [f"± {metric(own.sd(name))}"] if len(own.seeds) > 1 else []
    paper = paper_row(own.dataset, own.method, own.arm, scores.results.roles) if own.seen == "keep" else None
    if paper is not None:
        notes.append(f"paper {metric(paper.values[name])}{'*' if name in paper.starred else ''}")
    style = {0: "best", 1: "second"}.get(place, "")
    return Entry(metric(own.mean(name)), notes, style, marks(comparison))


def marks(comparison: Comparison | None) -> str:
    """``*``: significant over users; ``**``: over seeds, too; in brackets where the arm is the worse one."""
    if comparison is None or not comparison.significant(ALPHA):
        return ""
    text = "**" if comparison.holds_over_seeds(ALPHA) else "*"
    return text if comparison.gain > 0 else f"({text})"


def _gain_entry(comparison: Comparison | None) -> Entry:
    if comparison is None:
        return Entry("", style="empty")
    p = f"p {p_value(comparison.p_users_holm)}"
    if not math.isnan(comparison.p_seeds):
        p += f" · seeds {p_value(comparison.p_seeds_holm)}"
    notes = [interval(comparison.low, comparison.high), p]
    if comparison.reason and math.isnan(comparison.p_users):
        notes.append(comparison.reason)
    style = ("up" if comparison.gain > 0 else "down") if comparison.significant(ALPHA) else ""
    return Entry(per_cent(comparison.gain), notes, style, marks(comparison))


def _literature(dataset: str, seen: str) -> list[Line]:
    rows = literature_rows(dataset) if seen == "keep" else []
    blanks = [Entry("", style="empty")] * 2
    return [
        Line(
            method_title(row.method),
            [Entry(NONE), *(Entry(metric(row.values[name])) for name in METRICS), *blanks],
            "quoted first" if number == 0 else "quoted",
            "literature",
        )
        for number, row in enumerate(rows)
    ]


def _no_learning(scores: Scores, dataset: str, seen: str) -> list[Line]:
    lines: list[Line] = []
    for method, policies in scores.results.datasets[dataset].no_learning.items():
        if seen not in policies:
            continue
        values = [user_metric(policies[seen], name) for name in METRICS]
        entries = [Entry(metric(float(v.mean())) if len(v) else NONE) for v in values]
        blanks = [Entry("", style="empty")] * 2
        style = "quoted" if lines else "quoted first"
        lines.append(Line(method, [Entry(NONE), *entries, *blanks], style, "learns nothing"))
    return lines


def mean_gains_view(scores: Scores, seen: str) -> View:
    """Mean gains over cells, with the paper's by the same rule."""
    roles = scores.results.roles
    rows = [row for row in mean_gains_table(scores).rows if row["seen"] == seen]
    lines = []
    for arm, reference in dict.fromkeys((row["arm"], row["reference"]) for row in rows):
        own = {row["metric"]: row for row in rows if (row["arm"], row["reference"]) == (arm, reference)}
        entries = [Entry(count(own[PRIMARY_METRIC]["n_cells"]) if PRIMARY_METRIC in own else NONE)]
        for name in METRICS:
            row = own.get(name)
            if row is None:
                entries.append(Entry(NONE))
                continue
            notes = [f"{interval(row['low'], row['high'])} users"]
            if not math.isnan(row["low_with_seeds"]):
                notes.append(f"{interval(row['low_with_seeds'], row['high_with_seeds'])} and seeds")
            if "paper_gain" in row:
                notes.append(f"paper {per_cent(row['paper_gain'])}")
            entries.append(Entry(per_cent(row["gain"]), notes))
        lines.append(Line(f"{arm_title(arm, roles)} over {arm_title(reference, roles)}", entries))
    return View("Mean gain over all cells", ["Comparison", "Cells", *METRICS], lines)


def ablations_view(scores: Scores) -> View:
    """Every arm against Base, and +P2Rec against every ablation."""
    roles = scores.results.roles
    found = {(c.dataset, c.method, c.arm, c.reference): c for c in scores.against_base()}
    lines = []
    for dataset, method in scores.backbones:
        arms = [arm for arm in scores.results.arms_of(dataset, method) if arm != roles.base]
        for number, arm in enumerate(arms):
            own = scores.of(dataset, method, arm)
            title = f"{method_title(method)} {arm_title(arm, roles)}"
            versus = found.get((dataset, method, roles.p2rec, arm))
            entries = [
                Entry(dataset_title(dataset), style="text"),
                Entry(metric(own.mean(PRIMARY_METRIC)) if own is not None else NONE),
                _gain_entry(found.get((dataset, method, arm, roles.base))),
                _gain_entry(versus),
            ]
            lines.append(Line(title, entries, "first" if number == 0 else ""))
    columns = ["Arm", "Dataset", PRIMARY_METRIC, "over Base", "+P2Rec over it"]
    return View("Every arm against Base, and +P2Rec against every ablation", columns, lines)


def cost_view(scores: Scores) -> View:
    """Tokens and seconds of the language model."""
    lines = [
        Line(
            f"{method_title(row['method'])}, {row['phase']}",
            [
                Entry(dataset_title(row["dataset"]), style="text"),
                Entry(str(row["level"] or ""), style="text"),
                Entry(count(row["n_instances"])),
                Entry(count(row["n_tokens"])),
                Entry(seconds(row["seconds_per_epoch"])),
                Entry(seconds(row["seconds_measured"]), [f"{count(row['n_tokens_measured'])} tokens"]),
            ],
        )
        for row in cost_table(scores.results).rows
    ]
    columns = ["Method and phase", "Dataset", "One instance per", "Instances", "Tokens", "Per epoch", "Measured"]
    return View("The language model's work in one epoch", columns, lines)


def probes_view(scores: Scores, dataset: str) -> View:
    """What each distinct knowledge of a dataset carries by itself, with the levels by chance below; best is bold."""
    results = scores.results
    facts = results.datasets[dataset]
    places = {(row["probe"], row["metric"], row["group"]): row for probed in facts.probes for row in probed.rows}
    by_knowledge = [
        {(row["probe"], row["metric"], row["group"]): row["value"] for row in probed.rows} for probed in facts.probes
    ]
    best = {
        place: max((values[place] for values in by_knowledge if values.get(place) is not None), default=None)
        for place in places
    }
    all_methods = {method for probed in facts.probes for method in probed.methods}
    lines = []
    for probed, values in zip(facts.probes, by_knowledge, strict=True):
        entries = [Entry(probed.source, style="text"), Entry(count(probed.width))]
        for place in places:
            value = values.get(place)
            entries.append(Entry(metric(value), style="best" if value is not None and value == best[place] else ""))
        only = "" if set(probed.methods) == all_methods else listed([method_title(m) for m in probed.methods])
        lines.append(Line(listed([arm_title(arm, results.roles) for arm in probed.arms]), entries, note=only))
    blanks = [Entry("", style="text"), Entry("")]
    chances = [Entry(metric(row["chance"]), [f"{count(row['n'])} {_PROBED[row['probe']]}"]) for row in places.values()]
    lines.append(Line("Chance", [*blanks, *chances], "quoted first"))
    headings = [_probe_heading(row) for row in places.values()]
    return View(dataset_title(dataset, facts), ["Arms", "Source", "Width", *headings], lines)


_PROBED = {"next_item": "users", "copurchase": "items", "category": "items"}
_PROBE_HEADINGS = {"next_item": "Next item, {}", "copurchase": "Bought together", "category": "True category"}


def _probe_heading(row: Mapping[str, Any]) -> str:
    heading = _PROBE_HEADINGS[row["probe"]].format(row["metric"])
    group = row["group"]
    if group == "all":
        return heading
    return f"{row['metric']}, cold target" if group == "cold" else f"{row['metric']}, target {group} × in training"


def datasets_view(scores: Scores) -> View:
    """Size of the datasets, and what no model can know."""
    results, lines = scores.results, []
    for name in results.dataset_names():
        facts, users = results.datasets[name], results.users(name)
        n_cold = int((facts.target_n_train[users - 1] == 0).sum())
        numbers = (facts.n_users, facts.n_items, facts.n_interactions, len(users), n_cold)
        lines.append(
            Line(
                dataset_title(name, facts),
                [*(Entry(count(n)) for n in numbers), Entry(facts.language_model, style="text")],
            )
        )
    columns = ["Dataset", "Users", "Items", "Interactions", "Test users", "Cold test targets", "Language model"]
    return View("Datasets", columns, lines)


def arms_view(scores: Scores) -> View:
    """What every arm is."""
    roles = scores.results.roles
    lines = [Line(arm_title(arm, roles), [Entry(meaning)]) for arm, meaning in scores.results.arms.items()]
    return View("Arms", ["Arm", "What it is"], lines, numeric=False)


def budget_view(scores: Scores) -> View:
    """Tuning budget, chosen settings and time of every arm."""
    results, lines = scores.results, []
    for dataset in results.dataset_names():
        for method in results.methods(dataset):
            for arm in results.arms_of(dataset, method):
                cells = results.of(dataset, method, arm)
                title = method_title(method)
                if method not in results.roles.standalone:
                    title = f"{title} {arm_title(arm, results.roles)}"
                walls = [c.facts["wall_s"] for c in cells if c.facts.get("wall_s") is not None]
                entries = [
                    Entry(dataset_title(dataset)),
                    Entry(", ".join(str(c.cell.seed) for c in cells)),
                    Entry(_all(c.facts.get("trials") for c in cells)),
                    Entry(_all(c.facts.get("n_parameters") for c in cells)),
                    Entry(seconds(sum(walls)) if walls else NONE),
                    Entry(_all(c.facts.get("chosen") for c in cells)),
                ]
                lines.append(Line(title, entries))
    columns = ["Method", "Dataset", "Seeds", "Tuning trials", "Parameters", "Time, all seeds", "Chosen settings"]
    return View("Settings, tuning budget and time of every arm", columns, lines, numeric=False)


def cells_view(scores: Scores) -> View:
    """Every cell, with its artefact."""
    lines = []
    for row in cells_table(scores.results).rows:
        title = f"{method_title(row['method'])} {arm_title(row['arm'], scores.results.roles)}"
        entries = [Entry(dataset_title(row["dataset"]), style="text"), Entry(str(row["seed"]))]
        entries += [Entry(metric(row["validation"]))]
        entries += [Entry(count(row["best_epoch"])), Entry(count(row["n_epochs"])), Entry(seconds(row["wall_s"]))]
        lines.append(
            Line(title, [*entries, Entry(row["key"], style="text code"), Entry(row["code"], style="text code")])
        )
    columns = ["Method", "Dataset", "Seed", f"Validation {PRIMARY_METRIC}", "Best epoch", "Epochs", "Time"]
    return View("Every cell", [*columns, "Artefact", "Code"], lines)


def _all(values: Iterable[object]) -> str:
    """Different values among several, as text; integers with separators."""
    texts = [f"{value:,}" if isinstance(value, int) else json_for_reading(value) for value in values]
    return "; ".join(dict.fromkeys(text for text in texts if text)) or NONE
