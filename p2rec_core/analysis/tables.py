"""Every table of the report as rows of plain values, ready for a file."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2rec_core.analysis.comparison import Comparison, Scores
from p2rec_core.analysis.groups import Group, activity_groups, frequency_groups, target_groups
from p2rec_core.analysis.paper import ARMS, paper_gain, paper_gains, paper_row
from p2rec_core.analysis.results import DatasetFacts, ExperimentResults, Roles
from p2rec_core.analysis.significance import METRICS, PRIMARY_METRIC, mean_interval, relative_gain
from p2rec_core.metrics import SEEN_POLICIES, user_metric

Kind = Literal["text", "int", "float", "bool"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of plain values.

    Attributes:
        name: Name of the table, and of its files.
        columns: (name, kind) in order. A float may be NaN, and any value may be None.
        rows: Column → value.
    """

    name: str
    columns: tuple[tuple[str, Kind], ...]
    rows: Sequence[Row]


def all_tables(scores: Scores) -> list[Table]:
    """Every table of an experiment; one that there is nothing for has no rows."""
    results = scores.results
    return [
        metrics_table(scores),
        seeds_table(scores),
        comparisons_table(scores, "comparisons", _table_comparisons(scores)),
        comparisons_table(scores, "ablations", scores.against_base()),
        mean_gains_table(scores),
        no_learning_table(results),
        activity_table(scores),
        frequency_table(scores),
        targets_table(scores),
        agreement_table(results),
        cost_table(results),
        probes_table(results),
        curves_table(results),
        cells_table(results),
        missing_table(results),
        arms_table(results),
        datasets_table(results),
    ]


def metrics_table(scores: Scores) -> Table:
    """Mean and standard deviation over seeds of every arm, beside the paper's value."""
    results = scores.results
    rows = []
    for dataset, method, arm in _arms(results):
        row = paper_row(dataset, method, arm, results.roles)
        for seen in SEEN_POLICIES:
            own = scores.of(dataset, method, arm, seen)
            for metric in METRICS if own is not None else ():
                assert own is not None
                values: dict[str, Any] = {"n_seeds": len(own.seeds), "n_users": len(own.per_user[metric])}
                values |= {"mean": own.mean(metric), "sd": own.sd(metric)}
                paper = row.values[metric] if row is not None and seen == "keep" else None
                rows.append(_named(dataset, method, arm) | {"seen": seen, "metric": metric, "paper": paper} | values)
    columns = (*_texts("dataset", "method", "arm", "seen", "metric"), *_ints("n_seeds", "n_users"))
    return Table("metrics", (*columns, *_floats("mean", "sd", "paper")), rows)


def seeds_table(scores: Scores) -> Table:
    """Metrics of every seed."""
    rows = []
    for dataset, method, arm in _arms(scores.results):
        for seen in SEEN_POLICIES:
            own = scores.of(dataset, method, arm, seen)
            for metric in METRICS if own is not None else ():
                assert own is not None
                for seed, value in zip(own.seeds, own.per_seed[metric], strict=True):
                    named = _named(dataset, method, arm) | {"seed": seed}
                    rows.append(named | {"seen": seen, "metric": metric, "value": float(value)})
    columns = (*_texts("dataset", "method", "arm"), *_ints("seed"), *_texts("seen", "metric"), *_floats("value"))
    return Table("seeds", columns, rows)


def comparisons_table(scores: Scores, name: str, comparisons: Iterable[Comparison]) -> Table:
    """Arms against arms, with the paper's gain where it has one; seen policy and metric name the family."""
    kinds: dict[Any, Kind] = {str: "text", int: "int", float: "float"}
    columns = tuple((field.name, kinds[field.type]) for field in fields(Comparison))
    rows = [asdict(c) | {"paper_gain": _paper_gain(c, scores.results.roles)} for c in comparisons]
    return Table(name, (*columns[:-1], *_floats("paper_gain"), columns[-1]), rows)


def mean_gains_table(scores: Scores) -> Table:
    """Mean gains over cells, ours and those of the paper's own Table 2, by the same rule."""
    roles = scores.results.roles
    base, ci, p2rec = roles.main
    rows = []
    for arm, reference in ((ci, base), (p2rec, base), (p2rec, ci)):
        of_paper = dict(zip(roles.main, ARMS, strict=True))
        for seen in SEEN_POLICIES:
            for metric in METRICS:
                gain = scores.mean_gain(arm, reference, seen, metric)
                if gain is None:
                    continue
                row: dict[str, Any] = {"arm": arm, "reference": reference, "seen": seen, "metric": metric}
                row |= {"gain": gain.gain.value, "low": gain.gain.low, "high": gain.gain.high}
                row |= {"low_with_seeds": gain.with_seeds.low, "high_with_seeds": gain.with_seeds.high}
                row |= {"n_cells": gain.n_cells, "n_above": gain.n_above}
                if seen == "keep":
                    row |= paper_mean_gain(of_paper[arm], of_paper[reference], metric)
                rows.append(row)
    columns = (*_texts("arm", "reference", "seen", "metric"), *_floats("gain", "low", "high"))
    columns = (*columns, *_floats("low_with_seeds", "high_with_seeds"), *_ints("n_cells", "n_above"))
    return Table("mean_gains", (*columns, *_floats("paper_gain"), *_ints("paper_n_cells", "paper_n_above")), rows)


def paper_mean_gain(arm: str, reference: str, metric: str = PRIMARY_METRIC) -> dict[str, Any]:
    """Mean relative gain over the cells of the paper's Table 2, and in how many of them the arm is above.

    Args:
        arm: One of the paper's arms: "base", "ci", "p2rec".
        reference: Another one.
        metric: The metric.

    Returns:
        ``paper_gain``, ``paper_n_cells``, ``paper_n_above``.
    """
    gains = [gain for _, _, gain in paper_gains(arm, reference, metric)]
    mean = sum(gains) / len(gains)
    return {"paper_gain": mean, "paper_n_cells": len(gains), "paper_n_above": sum(gain > 0 for gain in gains)}


def no_learning_table(results: ExperimentResults) -> Table:
    """Metrics of what learns nothing."""
    rows = [
        {"dataset": name, "method": method, "seen": seen, "metric": metric, "value": _mean(ranks, metric)}
        for name in results.dataset_names()
        for method, policies in results.datasets[name].no_learning.items()
        for seen, ranks in policies.items()
        for metric in METRICS
    ]
    return Table("no_learning", (*_texts("dataset", "method", "seen", "metric"), *_floats("value")), rows)


def activity_table(scores: Scores) -> Table:
    """Users in equal groups by training length (paper, Fig. 6)."""
    return _group_table("activity", scores, lambda facts, users: activity_groups(users, facts.n_train[users - 1]))


def frequency_table(scores: Scores) -> Table:
    """Users in groups by the frequency of their target."""
    return _group_table("frequency", scores, lambda facts, users: frequency_groups(facts.target_n_train[users - 1]))


def targets_table(scores: Scores) -> Table:
    """Users whose target is new to them, and users who come back to an item that they had."""
    return _group_table(
        "targets",
        scores,
        lambda facts, users: [] if facts.target_seen is None else target_groups(facts.target_seen[users - 1]),
    )


def _group_table(
    name: str, scores: Scores, groups_of: Callable[[DatasetFacts, NDArray[np.int32]], Sequence[Group]]
) -> Table:
    """The rows of every dataset's groups.

    Args:
        name: Of the table.
        scores: The experiment's metrics.
        groups_of: Groups of the test users, int32 (n,) user_idx, of a dataset.
    """
    results = scores.results
    rows = [
        row
        for dataset in results.dataset_names()
        for row in group_rows(scores, dataset, groups_of(results.datasets[dataset], results.users(dataset)))
    ]
    return Table(name, _GROUP_COLUMNS, rows)


def group_rows(
    scores: Scores, dataset: str, groups: Sequence[Group], *, seen: str = "keep", metric: str = PRIMARY_METRIC
) -> list[dict[str, object]]:
    """One row per backbone, arm and group: the metric with its interval, and the gain over Base with its interval.

    Args:
        scores: The experiment's metrics.
        dataset: The dataset that the groups' rows belong to.
        groups: Users in groups.
        seen: The seen policy.
        metric: The metric.
    """
    rows: list[dict[str, object]] = []
    for method in scores.results.backbones(dataset):
        base = scores.of(dataset, method, scores.results.roles.base, seen)
        for arm in scores.results.arms_of(dataset, method):
            own = scores.of(dataset, method, arm, seen)
            if own is None:
                continue
            for number, group in enumerate(groups, start=1):
                values = own.per_user[metric][group.rows]
                mean = mean_interval(values)
                row: dict[str, object] = {"dataset": dataset, "method": method, "arm": arm, "seen": seen}
                row |= {"metric": metric, "group": number, "name": group.name, "least": group.low, "most": group.high}
                row |= {"n_users": len(values), "mean": mean.value, "low": mean.low, "high": mean.high}
                if base is not None:
                    gain = relative_gain(values, base.per_user[metric][group.rows])
                    row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                    row |= {"reason": gain.reason if base is not own else ""}
                rows.append(row)
    return rows


def agreement_table(results: ExperimentResults) -> Table:
    """How far the language model's category of an item agrees with its cluster (paper, Fig. 5)."""
    rows = [
        {"dataset": name, "arm": arm, "language_model": results.datasets[name].language_model} | dict(shares)
        for name in results.dataset_names()
        for arm, shares in results.datasets[name].agreement.items()
    ]
    return Table("agreement", (*_texts("dataset", "arm", "language_model"), *_floats("C1", "C2", "C3")), rows)


def cost_table(results: ExperimentResults) -> Table:
    """Tokens and seconds of the language model (paper, Fig. 4)."""
    columns = (*_texts("dataset", "method", "phase", "level"), *_ints("n_instances", "n_tokens"))
    columns = (*columns, *_floats("seconds_measured"), *_ints("n_tokens_measured"), *_floats("seconds_per_epoch"))
    rows = [
        {"dataset": name} | {column: row.get(column) for column, _ in columns[1:]}
        for name in results.dataset_names()
        for row in results.datasets[name].cost
    ]
    return Table("cost", columns, rows)


def probes_table(results: ExperimentResults) -> Table:
    """What the knowledge carries by itself, a row per arm that is given it; no value where nothing is known."""
    rows = [
        {"dataset": name, "arm": arm, "methods": ", ".join(probed.methods), "source": probed.source}
        | {"width": probed.width, "key": probed.key}
        | {column: row.get(column) for column in ("probe", "metric", "group", "value", "chance", "n")}
        for name in results.dataset_names()
        for probed in results.datasets[name].probes
        for arm in probed.arms
        for row in probed.rows
    ]
    columns = (*_texts("dataset", "arm", "methods", "source"), *_ints("width"), *_texts("probe", "metric", "group"))
    return Table("probes", (*columns, *_floats("value", "chance"), *_ints("n"), *_texts("key")), rows)


def curves_table(results: ExperimentResults) -> Table:
    """Learning curves."""
    rows = [
        _named(r.cell.dataset, r.cell.method, r.cell.arm)
        | {"seed": r.cell.seed, "epoch": epoch, "metric": metric, "value": float(value)}
        for r in results.cells
        for epoch, metric, value in r.curve
    ]
    columns = (*_texts("dataset", "method", "arm"), *_ints("seed", "epoch"), *_texts("metric"), *_floats("value"))
    return Table("curves", columns, rows)


def cells_table(results: ExperimentResults) -> Table:
    """Where every cell comes from."""
    rows = []
    for result in results.cells:
        row: dict[str, Any] = _named(result.cell.dataset, result.cell.method, result.cell.arm)
        row |= {"seed": result.cell.seed, "validation": float(result.validation)}
        row |= {name: result.facts.get(name) for name in ("wall_s", "best_epoch", "n_epochs", "n_parameters", "trials")}
        row |= {name: as_text(result.facts.get(name)) for name in _FACTS_AS_TEXT}
        rows.append(row)
    columns = (*_texts("dataset", "method", "arm"), *_ints("seed"), *_floats("validation", "wall_s"))
    columns = (*columns, *_ints("best_epoch", "n_epochs", "n_parameters", "trials"))
    return Table("cells", (*columns, *_texts(*_FACTS_AS_TEXT)), rows)


def missing_table(results: ExperimentResults) -> Table:
    """Cells of the plan that are not there."""
    rows = [_named(cell.dataset, cell.method, cell.arm) | {"seed": cell.seed} for cell in results.missing]
    return Table("missing", (*_texts("dataset", "method", "arm"), *_ints("seed")), rows)


def arms_table(results: ExperimentResults) -> Table:
    """What every arm is."""
    rows = [{"arm": arm, "meaning": meaning} for arm, meaning in results.arms.items()]
    return Table("arms", _texts("arm", "meaning"), rows)


def datasets_table(results: ExperimentResults) -> Table:
    """The datasets, with their test users and cold test targets."""
    rows = []
    for name in results.dataset_names():
        facts = results.datasets[name]
        row: dict[str, Any] = {"dataset": name, "synthetic": facts.synthetic, "language_model": facts.language_model}
        row |= {"n_users": facts.n_users, "n_items": facts.n_items, "n_interactions": facts.n_interactions}
        row |= {"n_test_users": len(results.users(name)), "n_cold_targets": n_cold_targets(results, facts)}
        rows.append(row)
    columns: tuple[tuple[str, Kind], ...] = (*_texts("dataset"), ("synthetic", "bool"), *_texts("language_model"))
    numbers = _ints("n_users", "n_items", "n_interactions", "n_test_users", "n_cold_targets")
    return Table("datasets", (*columns, *numbers), rows)


def n_cold_targets(results: ExperimentResults, facts: DatasetFacts) -> int:
    """Test users whose target occurs in no training part."""
    return int((facts.target_n_train[results.users(facts.dataset) - 1] == 0).sum())


def n_seen_targets(results: ExperimentResults, facts: DatasetFacts) -> int:
    """Test users whose target they had before; 0 where that is not known."""
    return 0 if facts.target_seen is None else int((facts.target_seen[results.users(facts.dataset) - 1] == 1).sum())


def as_text(value: Any) -> str:
    """A fact as text: nothing for None, text as it is, anything else as canonical JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _table_comparisons(scores: Scores) -> list[Comparison]:
    return [c for seen in SEEN_POLICIES for metric in METRICS for c in scores.table(seen, metric)]


def _paper_gain(comparison: Comparison, roles: Roles) -> float | None:
    arms = dict(zip(roles.main, ARMS, strict=True))
    if comparison.seen != "keep" or not {comparison.arm, comparison.reference} <= set(arms):
        return None
    reference = arms[comparison.reference]
    return paper_gain(comparison.dataset, comparison.method, arms[comparison.arm], reference, comparison.metric)


def _arms(results: ExperimentResults) -> list[tuple[str, str, str]]:
    names = ((d, m) for d in results.dataset_names() for m in results.methods(d))
    return [(d, m, arm) for d, m in names for arm in results.arms_of(d, m)]


def _mean(ranks: Any, metric: str) -> float:
    return float(user_metric(ranks, metric).mean()) if len(ranks) else float("nan")


def _named(dataset: str, method: str, arm: str) -> dict[str, Any]:
    return {"dataset": dataset, "method": method, "arm": arm}


def _texts(*names: str) -> tuple[tuple[str, Kind], ...]:
    return tuple((name, "text") for name in names)


def _ints(*names: str) -> tuple[tuple[str, Kind], ...]:
    return tuple((name, "int") for name in names)


def _floats(*names: str) -> tuple[tuple[str, Kind], ...]:
    return tuple((name, "float") for name in names)


_FACTS_AS_TEXT = ("chosen", "machine", "versions", "key", "code")
_GROUP_COLUMNS = (
    *_texts("dataset", "method", "arm", "seen", "metric"),
    *_ints("group"),
    *_texts("name"),
    *_ints("least", "most", "n_users"),
    *_floats("mean", "low", "high", "gain", "gain_low", "gain_high"),
    *_texts("reason"),
)
