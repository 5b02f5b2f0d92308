"""Results of an experiment that nobody made, with an effect of known size in them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from p2rec_core.analysis.results import Cell, CellResult, DatasetFacts, ExperimentResults, ProbedKnowledge, Roles

ARMS = {"base": 0.0, "ci": 0.04, "p2rec": 0.12, "random-knowledge": 0.0, "no-gate": 0.06}
MEANING = {
    "base": "the backbone alone",
    "ci": "with the cluster's index as a feature",
    "p2rec": "gated with item knowledge",
    "random-knowledge": "gated with random vectors instead of knowledge",
    "no-gate": "knowledge added instead of gated",
}
LEVEL = {"gru4rec": 5.6, "caser": 6.0, "sasrec": 5.2, "fmlp-rec": 5.1, "e4srec": 5.3}


def make_results(
    datasets: Sequence[str] = ("beauty",),
    methods: Sequence[str] = ("sasrec",),
    arms: Mapping[str, float] = ARMS,
    seeds: Sequence[int] = (1, 2, 3),
    n_users: int = 1500,
    n_items: int = 900,
    missing: Sequence[Cell] = (),
    synthetic: bool = False,
    standalone: bool = True,
) -> ExperimentResults:
    """Ranks are log-normal around a level per user; an arm lowers the level of every user by its effect."""
    cells, facts = [], {}
    for number, dataset in enumerate(datasets):
        rng = np.random.default_rng(number)
        users = np.sort(rng.choice(n_users, int(0.97 * n_users), replace=False)).astype(np.int32) + 1
        n_train = (2 + rng.geometric(0.16, n_users)).astype(np.int32)
        target = np.round(rng.lognormal(2.5, 1.2, n_users) - 1).clip(0).astype(np.int32)
        level = rng.normal(0, 1.6, n_users) - 0.25 * np.log1p(target)
        todo = [(method, arm) for method in methods for arm in arms]
        todo += [("e4srec", "e4srec")] if standalone else []
        for method, arm in todo:
            for seed in seeds:
                cell = Cell(dataset, method, arm, seed)
                if cell not in missing:
                    cells.append(one_cell(rng, cell, users, level, arms.get(arm, 0.0), n_items))
        repeats = rng.random(len(users)) < 0.03
        seen = np.full(n_users, -1, np.int32)
        seen[users - 1] = repeats
        facts[dataset] = DatasetFacts(
            dataset=dataset,
            synthetic=synthetic,
            n_users=n_users,
            n_items=n_items,
            n_interactions=int(n_train.sum()),
            n_train=n_train,
            target_n_train=np.where(np.isin(np.arange(1, n_users + 1), users), target, -1).astype(np.int32),
            target_seen=seen,
            no_learning={
                "popularity": both(rng.integers(5, n_items, len(users))),
                "recency copy": {
                    "keep": np.where(repeats, 1, n_items // 2).astype(np.int32),
                    "mask": np.where(repeats, 0, n_items // 2).astype(np.int32),
                },
                "id + 1": both(rng.integers(1, n_items, len(users))),
            },
            agreement={"p2rec": {"C1": 0.71 - 0.1 * number, "C2": 0.19, "C3": 0.10 + 0.1 * number}},
            cost=cost_rows(n_users * (number + 1), n_items, int(n_train.sum())),
            probes=[
                probed(("p2rec", "no-gate"), "tuned", 0.04, methods),
                probed(("random-knowledge",), "random", 0.0009, methods),
            ],
            language_model="all-MiniLM-L6-v2",
        )
    return ExperimentResults(
        name="table2",
        cells=cells,
        datasets=facts,
        missing=tuple(missing),
        command="p2rec experiment table2",
        arms={arm: MEANING.get(arm, arm) for arm in arms},
        roles=Roles(ablations=tuple(arm for arm in arms if arm not in ("base", "ci", "p2rec"))),
    )


def one_cell(rng, cell: Cell, users, level, effect: float, n_items: int) -> CellResult:
    noise = rng.normal(0, 0.8, len(users)) + rng.normal(0, 0.01)
    ranks = np.exp(LEVEL.get(cell.method, 5.5) + level[users - 1] + noise - effect)
    keep = np.clip(np.ceil(ranks), 1, n_items).astype(np.int32)
    mask = np.where(rng.random(len(users)) < 0.02, 0, np.maximum(1, keep - 2)).astype(np.int32)
    top = 0.05 * (1 + effect) + rng.normal(0, 0.0005)
    epochs = range(1, 21)
    curve = [(e, "NDCG@10", float(top * (1 - np.exp(-e / 5)) - 2e-5 * (e - 14) ** 2)) for e in epochs]
    curve += [(e, "loss", float(6 * np.exp(-e / 9) + 3)) for e in epochs]
    return CellResult(
        cell,
        users,
        {"keep": keep, "mask": mask},
        validation=max(v for _, name, v in curve if name == "NDCG@10"),
        curve=curve,
        facts={
            "wall_s": 600.0 + 10 * cell.seed,
            "best_epoch": 16,
            "n_epochs": 20,
            "n_parameters": 812_345,
            "trials": 6,
            "chosen": {"lr": 0.002, "dropout": 0.5},
            "machine": "2 cores",
            "versions": {"numpy": "2", "torch": "2"},
            "key": "0123456789abcdef",
        },
    )


def both(ranks) -> dict[str, np.ndarray]:
    return {"keep": ranks.astype(np.int32), "mask": ranks.astype(np.int32)}


def cost_rows(n_users: int, n_items: int, n_interactions: int) -> list[dict[str, object]]:
    rows = []
    for method, phase, level, n_instances, per in (
        ("p2rec", "training", "user", n_users, 32),
        ("e4srec", "training", "instance", 7 * n_users, 80),
        ("p2rec", "inference", "item", n_items, 26),
        ("e4srec", "inference", "user", n_users, 75),
    ):
        tokens = n_instances * per
        row = {"method": method, "phase": phase, "level": level, "n_instances": n_instances, "n_tokens": tokens}
        row |= {"seconds_measured": 20.0, "n_tokens_measured": tokens // 10, "seconds_per_epoch": tokens / 2500}
        rows.append(row)
    return rows


def probed(arms: tuple[str, ...], source: str, value: float, methods: Sequence[str]) -> ProbedKnowledge:
    rows: list[dict[str, object]] = []
    for probe, metric, group, found, chance, n in (
        ("next_item", "HR@10", "all", value, 0.0008, 1400),
        ("next_item", "NDCG@10", "all", value / 2, 0.0004, 1400),
        ("next_item", "NDCG@10", "cold", value / 4, 0.0004, 20),
        ("next_item", "NDCG@10", "1–9", value / 3, 0.0004, 1380),
        ("copurchase", "precision@10", "all", 2 * value, 0.0018, 900),
        ("category", "accuracy of 10 nearest", "all", None, None, 0),
    ):
        row = {"probe": probe, "metric": metric, "group": group, "value": found, "chance": chance, "n": n}
        rows.append(row)
    return ProbedKnowledge(arms, tuple(methods), source, 64, f"key-{source}", rows)


@pytest.fixture(scope="session")
def make() -> Callable[..., ExperimentResults]:
    return make_results
