"""Comparisons, groups, the paper's table and the tables of the report."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from p2rec_core.analysis.comparison import Scores, require_comparable
from p2rec_core.analysis.groups import activity_groups, frequency_groups, target_groups
from p2rec_core.analysis.paper import LITERATURE, paper_gains, paper_row, paper_rows
from p2rec_core.analysis.results import (
    Cell,
    CellResult,
    DatasetFacts,
    ExperimentResults,
    ResultsIncomplete,
    ResultsInvalid,
    Roles,
)
from p2rec_core.analysis.significance import METRICS, relative_gain
from p2rec_core.analysis.tables import all_tables, paper_mean_gain
from p2rec_core.metrics import user_metric


def tiny(ranks: dict[tuple[str, int], list[int]], **changes) -> ExperimentResults:
    """One dataset and method: (arm, seed) → ranks of users 1, 2, …"""
    n = len(next(iter(ranks.values())))
    users = np.arange(1, n + 1, dtype=np.int32)
    cells = [
        CellResult(Cell("toy", "sasrec", arm, seed), users, {"keep": np.array(values, np.int32)})
        for (arm, seed), values in ranks.items()
    ]
    facts = DatasetFacts("toy", True, n, 10, 3 * n, np.arange(n, dtype=np.int32), np.zeros(n, np.int32))
    return dataclasses.replace(ExperimentResults("toy", cells, {"toy": facts}), **changes)


def test_the_papers_table_is_whole():
    rows = paper_rows()
    assert len(rows) == 3 * (4 + 4 * 3)
    assert {row.dataset for row in rows} == {"beauty", "ml-1m", "yelp"}
    assert sum(row.arm == LITERATURE for row in rows) == 12
    for row in rows:
        assert row.values["HR@5"] < row.values["HR@10"]
        assert row.values["NDCG@5"] < row.values["NDCG@10"]
        assert row.values["NDCG@10"] < row.values["HR@10"]
    assert paper_row("ml-1m", "sasrec", "p2rec").values["HR@10"] == 0.3315
    assert paper_row("yelp", "fmlp_rec", "p2rec").starred == {"HR@5", "HR@10", "NDCG@10"}
    assert paper_row("beauty", "e4srec", "any", Roles()).values["NDCG@10"] == 0.0448
    assert paper_row("beauty", "sasrec", "random-knowledge", Roles()) is None
    assert sum(len(row.starred) for row in rows) == 10


def test_the_papers_mean_gains():
    over_base, over_ci = paper_mean_gain("p2rec", "base"), paper_mean_gain("p2rec", "ci")
    assert (round(100 * over_base["paper_gain"], 1), round(100 * over_ci["paper_gain"], 1)) == (8.1, 5.4)
    assert over_base["paper_n_cells"] == over_base["paper_n_above"] == 12
    above = sum(gain > 0 for metric in METRICS for _, _, gain in paper_gains("p2rec", "base", metric))
    assert above == 47  # FMLP-Rec's HR@10 on Beauty is below Base in the paper, too


def test_a_comparison_by_hand():
    # NDCG@10 per user: base (1, 0, .5) and (1, 0, 0); p2rec (1, .5, .5) twice
    results = tiny({("base", 1): [1, 0, 3], ("base", 2): [1, 11, 0], ("p2rec", 1): [1, 3, 3], ("p2rec", 2): [1, 3, 3]})
    (comparison,) = Scores(results).table("keep")
    assert (comparison.arm, comparison.reference) == ("p2rec", "base")
    assert comparison.reference_mean == pytest.approx((1.5 + 1.0) / 6)
    assert comparison.mean == pytest.approx(2 / 3)
    assert comparison.gain == pytest.approx(0.6)
    base, p2rec = np.array([1, 0, 0.25]), np.array([1, 0.5, 0.5])
    assert comparison.p_users == pytest.approx(stats.ttest_rel(p2rec, base).pvalue)
    assert comparison.p_users_holm == comparison.p_users
    assert comparison.p_seeds == pytest.approx(
        stats.ttest_ind_from_stats(2 / 3, 0, 2, 1.25 / 3, np.std([0.5, 1 / 3], ddof=1), 2, equal_var=False).pvalue
    )
    scores = Scores(results).of("toy", "sasrec", "base")
    assert scores.seeds == (1, 2)
    assert scores.sd("NDCG@10") == pytest.approx(np.std([0.5, 1 / 3], ddof=1))


def test_the_family_is_one_table_of_one_metric(make):
    scores = Scores(make(methods=("sasrec", "caser")))
    family = scores.table("keep", "HR@10")
    assert len(family) == 2 * 3
    raw = sorted(c.p_users for c in family)
    assert min(c.p_users_holm for c in family) == pytest.approx(min(1, 6 * raw[0]))
    assert all(c.p_users_holm >= c.p_users for c in family)
    assert not any(c.method == "e4srec" for c in family)


def test_ablations_stand_against_base_and_against_p2rec(make):
    pairs = {(c.arm, c.reference) for c in Scores(make()).against_base()}
    assert pairs == {
        ("ci", "base"),
        ("p2rec", "base"),
        ("random-knowledge", "base"),
        ("no-gate", "base"),
        ("p2rec", "random-knowledge"),
        ("p2rec", "no-gate"),
    }


def test_an_injected_effect_is_found_and_none_is_not(make):
    found = {(c.arm, c.reference): c for c in Scores(make(n_users=6000)).against_base()}
    assert found["p2rec", "base"].holds_over_seeds(0.05)
    assert found["p2rec", "base"].low > 0
    assert not found["random-knowledge", "base"].holds_over_seeds(0.05)
    assert found["p2rec", "random-knowledge"].low > 0


def test_without_an_effect_one_interval_in_twenty_leaves_out_zero():
    rng = np.random.default_rng(0)
    left_out = 0
    for _ in range(600):
        ranks = np.ceil(rng.lognormal(2.5, 1, (2, 200)) * rng.lognormal(0, 1, 200)).astype(np.int32)
        gain = relative_gain(*(user_metric(own, "NDCG@10") for own in ranks))
        left_out += gain.low > 0 or gain.high < 0
    assert 0.03 < left_out / 600 < 0.075


def test_mean_gain_of_one_cell_is_its_gain_with_about_its_interval(make):
    scores = Scores(make(arms={"base": 0.0, "p2rec": 0.3}, n_users=6000))
    mean, (cell,) = scores.mean_gain("p2rec", "base"), scores.table("keep")
    assert mean.gain.value == pytest.approx(cell.gain)
    assert (mean.gain.low, mean.gain.high) == pytest.approx((cell.low, cell.high), abs=0.01)
    assert mean.with_seeds.low < mean.gain.low
    assert (mean.n_cells, mean.n_above) == (1, 1)


def test_mean_gain_counts_shared_users_once():
    # two methods with the very same ranks know no more than one
    users = np.arange(1, 401, dtype=np.int32)
    rng = np.random.default_rng(0)
    ranks = {arm: rng.integers(0, 20, 400).astype(np.int32) for arm in ("base", "p2rec")}
    facts = DatasetFacts("toy", True, 400, 20, 400, np.ones(400, np.int32), np.ones(400, np.int32))

    def results(methods):
        cells = [CellResult(Cell("toy", m, arm, 1), users, {"keep": r}) for m in methods for arm, r in ranks.items()]
        return Scores(ExperimentResults("toy", cells, {"toy": facts})).mean_gain("p2rec", "base")

    one, two = results(["sasrec"]), results(["sasrec", "caser"])
    assert two.n_cells == 2
    assert (two.gain.low, two.gain.high) == pytest.approx((one.gain.low, one.gain.high))
    assert math.isnan(two.with_seeds.low)
    assert two.with_seeds.reason == "too few observations"


def test_activity_groups_are_equal_and_break_ties_by_user():
    users, n_train = np.arange(1, 12, dtype=np.int32), np.array([5, 5, 5, 1, 9, 2, 5, 5, 3, 7, 5], np.int32)
    groups = activity_groups(users, n_train)
    assert [len(g.rows) for g in groups] == [3, 2, 2, 2, 2]
    assert users[groups[0].rows].tolist() == [4, 6, 9]
    assert users[groups[1].rows].tolist() == [1, 2]
    assert [g.name for g in groups] == ["1–3", "5", "5", "5", "7–9"]
    assert len(activity_groups(users[:3], n_train[:3])) == 3


def test_frequency_groups_keep_equal_frequencies_together():
    groups = frequency_groups(np.array([0, 3, 3, 3, 1, 8, 8, 20, -1, 0], np.int32))
    assert [(g.name, len(g.rows)) for g in groups] == [("cold", 2), ("1–3", 4), ("8", 2), ("20", 1)]
    assert frequency_groups(np.array([-1], np.int32)) == []
    assert [g.name for g in frequency_groups(np.array([0], np.int32))] == ["cold"]


def test_users_who_come_back_are_told_from_those_who_find_something_new():
    groups = target_groups(np.array([0, 1, -1, 1, 0, 0], np.int32))
    assert [(g.name, g.rows.tolist()) for g in groups] == [("new", [0, 4, 5]), ("had before", [1, 3])]
    assert [g.name for g in target_groups(np.array([0, 0], np.int32))] == ["new"]


def test_every_table_has_its_columns_and_kinds(make):
    kinds = {"text": str, "int": (int, np.integer), "float": (float, int), "bool": bool}
    for table in all_tables(Scores(make(missing=[Cell("beauty", "sasrec", "ci", 2)]))):
        assert table.rows, table.name
        for row in table.rows:
            assert set(row) <= {name for name, _ in table.columns}, table.name
            for name, kind in table.columns:
                assert row.get(name) is None or isinstance(row[name], kinds[kind]), (table.name, name, row[name])


def test_groups_add_up_to_all_users(make):
    scores = Scores(make())
    tables = {table.name: table for table in all_tables(scores)}
    for name in ("activity", "frequency", "targets"):
        rows = [row for row in tables[name].rows if row["arm"] == "p2rec"]
        assert sum(row["n_users"] for row in rows) == len(scores.results.users("beauty"))
        total = sum(row["n_users"] * row["mean"] for row in rows) / sum(row["n_users"] for row in rows)
        assert total == pytest.approx(scores.of("beauty", "sasrec", "p2rec").mean("NDCG@10"))


def test_degenerate_results_are_tables_too():
    for ranks in ([0, 0, 0, 0], [1, 1, 1, 1], [3, 0, 0, 0], [2]):
        results = tiny({("base", 1): ranks, ("ci", 1): ranks, ("p2rec", 1): ranks})
        scores = Scores(results)
        for comparison in scores.table("keep"):
            assert comparison.reason
            assert math.isnan(comparison.p_users) or comparison.p_users == 1
        assert len(all_tables(scores)) == 17


def test_results_without_users_have_no_value():
    scores = Scores(tiny({("base", 1): [], ("p2rec", 1): []}))
    (comparison,) = scores.table("keep")
    assert math.isnan(comparison.gain)
    assert "no users" in comparison.reason
    assert scores.mean_gain("p2rec", "base") is None
    all_tables(scores)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda: tiny({("p2rec", 1): [1, 2], ("ci", 1): [1, 2]}), "has no backbone with 'base' and another arm"),
        (lambda: tiny({("base", 1): [1, 2]}), "has no backbone with 'base' and another arm"),
        (lambda: ExperimentResults("toy", [], {}), "has no cell"),
    ],
)
def test_nothing_to_compare_names_the_missing_cells_and_the_command(results, message):
    missing = [Cell("toy", "sasrec", "base", 1), Cell("toy", "sasrec", "base", 2)]
    incomplete = dataclasses.replace(results(), missing=missing, command="p2rec experiment toy")
    with pytest.raises(ResultsIncomplete, match=message) as raised:
        require_comparable(incomplete)
    assert "toy/sasrec/base/seed 1, toy/sasrec/base/seed 2" in raised.value.problem
    assert raised.value.remedy == "Run: p2rec experiment toy"


def changed(results: ExperimentResults, **changes) -> list[CellResult]:
    first, *rest = results.cells
    return [dataclasses.replace(first, **changes), *rest]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (lambda r: [*r.cells, r.cells[0]], "Two results are there for toy/sasrec/base/seed 1"),
        (lambda r: changed(r, cell=Cell("mars", "sasrec", "base", 1)), "nothing is known of; known: toy"),
        (lambda r: changed(r, users=np.array([2, 1], np.int32)), "not ascending"),
        (lambda r: changed(r, users=np.array([1, 3], np.int32)), "evaluated on other users than toy/sasrec/base"),
        (lambda r: changed(r, ranks={"mask": np.array([1, 2], np.int32)}), "no ranks under the seen policy 'keep'"),
        (lambda r: changed(r, ranks={"keep": np.array([1], np.int32)}), "has 1 ranks under 'keep' for 2 users"),
        (lambda r: changed(r, ranks={"keep": np.array([1, -1], np.int32)}), "negative rank under 'keep'"),
    ],
)
def test_contradictions_are_found(cells, message):
    results = tiny({("base", 1): [1, 2], ("p2rec", 1): [1, 2]})
    with pytest.raises(ResultsInvalid, match=message):
        dataclasses.replace(results, cells=cells(results))


def test_facts_have_to_fit():
    results = tiny({("base", 1): [1, 2], ("p2rec", 1): [1, 2]})
    short = dataclasses.replace(results.datasets["toy"], n_train=np.zeros(1, np.int32))
    with pytest.raises(ResultsInvalid, match="n_train of 'toy' has 1 rows for 2 users"):
        dataclasses.replace(results, datasets={"toy": short})
    few = dataclasses.replace(results.datasets["toy"], no_learning={"popularity": {"keep": np.ones(3, np.int32)}})
    with pytest.raises(ResultsInvalid, match="'popularity' on 'toy' has 3 ranks under 'keep' for 2 users"):
        dataclasses.replace(results, datasets={"toy": few})


def test_cells_are_in_the_papers_order(make):
    results = make(methods=("fmlp_rec", "gru4rec", "zeta"), seeds=(2, 1), n_users=60)
    assert results.methods("beauty") == ["gru4rec", "fmlp_rec", "e4srec", "zeta"]
    assert results.backbones("beauty") == ["gru4rec", "fmlp_rec", "zeta"]
    assert results.arms_of("beauty", "zeta") == ["base", "ci", "p2rec", "random-knowledge", "no-gate"]
    assert [r.cell.seed for r in results.of("beauty", "zeta", "ci")] == [1, 2]


def test_a_policy_that_a_cell_lacks_is_left_out():
    results = tiny({("base", 1): [1, 2], ("p2rec", 1): [1, 3]})
    assert Scores(results).of("toy", "sasrec", "base", "mask") is None
    assert list(Scores(results).table("mask")) == []
    assert user_metric(results.cells[0].ranks["keep"], "HR@5").sum() == 2
