"""What the results say, in sentences that are made from them and from nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2rec_core.analysis.comparison import Comparison, MeanGain, Scores
from p2rec_core.analysis.paper import paper_row
from p2rec_core.analysis.significance import ALPHA, PRIMARY_METRIC, Interval
from p2rec_core.analysis.tables import n_cold_targets, n_seen_targets, paper_mean_gain
from tasks.report.names import arm_title, dataset_title, interval, listed, method_title, per_cent, plural

ABOUT_PROBES = (
    "Before any recommender is trained, the prepared knowledge is asked how much of it is where a recommender would "
    "look; this is the matrix that the item table gets, whitened and cut. The last line is what vectors that carry "
    "nothing would give.",
    "Next item: the mean of the vectors of a user's last 5 training items ranks the validation item among all items by "
    "cosine, seen items left out; NDCG@10 also by the target's training interactions. Chance is a random order. "
    "Bought together: the part of an item's 10 nearest items that some user has together with it in training, over "
    "items that occur there; chance is that of random neighbours. True category: how often the majority of the 10 "
    "nearest items names an item's own category, where the dataset tells it; chance is the largest category's part. "
    "Where the language model reads the category among an item's words, it tells what it was told.",
    "Nothing here reads test items. What a recommender makes of the knowledge is in the ablations: it learns from the "
    "same interactions, so that what it could learn anyway is worth less to it than it is here.",
)
"""How to read the probes of the knowledge, a paragraph each."""


@dataclass(frozen=True)
class Tile:
    """A number that stands out.

    Attributes:
        label: What it is.
        value: The number.
        note: What to know about it.
    """

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The top of the report.

    Attributes:
        verdict: Whether +P2Rec beats Base and +CI, in a sentence.
        findings: What else the results show.
        shortfalls: What is wrong or missing.
        tiles: Numbers that stand out.
    """

    verdict: str
    findings: list[str]
    shortfalls: list[str]
    tiles: list[Tile]


def headline(scores: Scores) -> Headline:
    """What the results say, and what they fall short of."""
    roles = scores.results.roles
    table = [c for c in scores.table("keep") if c.arm == roles.p2rec]
    over_base = scores.mean_gain(roles.p2rec, roles.base)
    over_ci = scores.mean_gain(roles.p2rec, roles.ci)
    findings = []
    for reference, gain in ((roles.base, over_base), (roles.ci, over_ci)):
        if gain is not None:
            own = [c for c in table if c.reference == reference]
            findings.append(_counts(own, gain, arm_title(reference, roles)))
    findings.extend(_ablation_findings(scores))
    shortfalls = [
        *_against_paper(over_base, "base"),
        *_against_paper(over_ci, "ci"),
        *_weak_base(scores),
        *_unbeaten_ablations(scores),
        *_seeds(table),
        *_unequal_tuning(scores),
        *_data(scores),
        *_missing(scores),
    ]
    return Headline(
        _verdict(over_base, over_ci, *_weak_bases(scores)),
        findings,
        shortfalls,
        _tiles(table, over_base, over_ci, roles.base),
    )


def _verdict(over_base: MeanGain | None, over_ci: MeanGain | None, below: list[str], n_compared: int) -> str:
    if over_base is None:
        return "No cell has both Base and +P2Rec yet."
    clauses = [_clause(over_base, "Base")] + ([_clause(over_ci, "+CI")] if over_ci is not None else [])
    seeds = "" if over_base.with_seeds.reason == "" else ", one seed"
    where = f"{over_base.metric}, mean of {plural(over_base.n_cells, 'cell')}{seeds}"
    weak = f" Base is below the paper's in {len(below)} of {n_compared}." if below else ""
    return f"+P2Rec {' and '.join(clauses)} ({where}).{weak}"


def _clause(gain: MeanGain, reference: str) -> str:
    own, size = _widest(gain), per_cent(abs(gain.gain.value)).removeprefix("+")
    if math.isnan(own.low) or own.low <= 0 <= own.high:
        return f"cannot be told from {reference} ({per_cent(gain.gain.value)})"
    return f"beats {reference} by {size}" if own.low > 0 else f"is {size} below {reference}"


def _widest(gain: MeanGain) -> Interval:
    """The interval over users and seeds where there is one, else that over users."""
    return gain.gain if math.isnan(gain.with_seeds.low) else gain.with_seeds


def _intervals(gain: MeanGain) -> str:
    text = f"95\u00a0% interval {interval(gain.gain.low, gain.gain.high)} over users"
    if math.isnan(gain.with_seeds.low):
        return text
    return f"{text}, {interval(gain.with_seeds.low, gain.with_seeds.high)} over users and seeds"


def _counts(own: Sequence[Comparison], gain: MeanGain, reference: str) -> str:
    above = [c for c in own if c.gain > 0]
    better = sum(c.significant(ALPHA) for c in above)
    worse = sum(c.significant(ALPHA) for c in own if c.gain < 0)
    firm = sum(c.holds_over_seeds(ALPHA) for c in above)
    text = (
        f"Against {reference}: mean gain {per_cent(gain.gain.value)} ({_intervals(gain)}); above it in "
        f"{gain.n_above} of {plural(gain.n_cells, 'cell')}, significantly so in {better}, significantly below it in "
        f"{worse} (paired t-test over users, Holm)."
    )
    if any(not math.isnan(c.p_seeds) for c in own):
        text += f" In {firm} the gain also holds over seeds (Welch's t-test, Holm)."
    return text


def _ablation_findings(scores: Scores) -> list[str]:
    roles, found = scores.results.roles, []
    comparisons = [c for c in scores.against_base() if c.arm == roles.p2rec and c.reference not in roles.main]
    for arm in dict.fromkeys(c.reference for c in comparisons):
        own = [c for c in comparisons if c.reference == arm]
        better = sum(c.significant(ALPHA) and c.gain > 0 for c in own)
        gain = scores.mean_gain(roles.p2rec, arm)
        if gain is not None:
            found.append(
                f"Against the ablation “{arm}”: mean gain {per_cent(gain.gain.value)} "
                f"({_intervals(gain)}); significantly above it in {better} of "
                f"{plural(len(own), 'cell')}."
            )
    return found


def _against_paper(gain: MeanGain | None, reference: str) -> list[str]:
    if gain is None:
        return []
    paper = paper_mean_gain("p2rec", reference)
    if gain.gain.value >= paper["paper_gain"]:
        return []
    title = {"base": "Base", "ci": "+CI"}[reference]
    return [
        f"The gain over {title} is below the paper's: {per_cent(gain.gain.value)} here, "
        f"{per_cent(paper['paper_gain'])} there ({plural(paper['paper_n_cells'], 'cell')} of its Table 2, same rule)."
    ]


def _unbeaten_ablations(scores: Scores) -> list[str]:
    """Ablations that do no worse than +P2Rec: what it gains, they gain too."""
    roles = scores.results.roles
    unbeaten = []
    for arm in roles.ablations:
        gain = scores.mean_gain(roles.p2rec, arm)
        if gain is not None and not _widest(gain).low > 0:
            unbeaten.append(f"“{arm}” ({per_cent(gain.gain.value)})")
    if not unbeaten:
        return []
    return [
        f"+P2Rec is not surely above {plural(len(unbeaten), 'ablation')}: {listed(unbeaten, limit=6)}. "
        "What these gain over Base is not owed to what they leave out."
    ]


def _weak_bases(scores: Scores) -> tuple[list[str], int]:
    """Cells whose Base is below the paper's, the weakest first, and how many could be compared."""
    roles = scores.results.roles
    below: list[tuple[float, str]] = []
    n_compared = 0
    for dataset, method in scores.backbones:
        own, paper = scores.of(dataset, method, roles.base), paper_row(dataset, method, "base")
        if own is None or paper is None:
            continue
        n_compared += 1
        gap = own.mean(PRIMARY_METRIC) / paper.values[PRIMARY_METRIC] - 1
        if gap < 0:
            below.append((gap, f"{method_title(method)} on {dataset_title(dataset)} ({per_cent(gap)})"))
    return [name for _, name in sorted(below)], n_compared


def _weak_base(scores: Scores) -> list[str]:
    below, n_compared = _weak_bases(scores)
    if not below:
        return []
    return [
        f"Base is below the paper's Base in {len(below)} of {plural(n_compared, 'cell')}: {listed(below, limit=4)}. "
        "A gain over a weak Base counts for less."
    ]


def _seeds(table: Sequence[Comparison]) -> list[str]:
    if not table:
        return []
    single = [c for c in table if min(c.n_seeds, c.n_reference_seeds) < 2]
    if single:
        return [
            f"Comparisons of +P2Rec that rest on one seed of an arm: {len(single)} of {len(table)}. Their p-values say "
            "nothing about the noise of training."
        ]
    uneven = sum(c.n_seeds != c.n_reference_seeds for c in table)
    text = f"Comparisons of +P2Rec between arms with unequal numbers of seeds: {uneven} of {len(table)}."
    return [text] if uneven else []


def _unequal_tuning(scores: Scores) -> list[str]:
    results, found = scores.results, []
    for dataset, method in scores.backbones:
        trials = {
            arm_title(r.cell.arm, results.roles): r.facts["trials"]
            for arm in results.roles.main
            for r in results.of(dataset, method, arm)
            if r.facts.get("trials") is not None
        }
        if len(set(trials.values())) > 1:
            budget = ", ".join(f"{arm} {n}" for arm, n in trials.items())
            found.append(f"{method_title(method)} on {dataset_title(dataset)} ({budget})")
    return [f"Arms were tuned with unequal numbers of trials: {listed(found, limit=4)}."] if found else []


def _data(scores: Scores) -> list[str]:
    results, found = scores.results, []
    datasets = [results.datasets[name] for name in results.dataset_names()]
    synthetic = [dataset_title(facts.dataset) for facts in datasets if facts.synthetic]
    if synthetic:
        found.append(f"Synthetic data, drawn by a program: {listed(synthetic)}.")
    random_init = [f.language_model for f in datasets if "random-init" in f.language_model]
    if random_init:
        found.append(f"The language model has random weights: {listed(sorted(set(random_init)))}.")
    for count, what in (
        (n_cold_targets, "Test targets that occur in no training part, which no model can know"),
        (n_seen_targets, "Test targets that their users had before"),
    ):
        numbers = [(facts, count(results, facts)) for facts in datasets]
        words = [
            f"{n:,} of {len(results.users(facts.dataset)):,} on {dataset_title(facts.dataset)}"
            for facts, n in numbers
            if n
        ]
        if words:
            found.append(f"{what}: {listed(words)}.")
    return found


def _missing(scores: Scores) -> list[str]:
    n = len(scores.results.missing)
    return [f"{plural(n, 'cell')} of the plan {'is' if n == 1 else 'are'} missing."] if n else []


def _tiles(table: Sequence[Comparison], over_base: MeanGain | None, over_ci: MeanGain | None, base: str) -> list[Tile]:
    tiles = []
    for gain, title, reference in ((over_base, "Base", "base"), (over_ci, "+CI", "ci")):
        if gain is not None:
            paper = per_cent(paper_mean_gain("p2rec", reference)["paper_gain"])
            note = f"95\u00a0%: {interval(_widest(gain).low, _widest(gain).high)}; paper {paper}"
            tiles.append(Tile(f"{gain.metric}, +P2Rec over {title}", per_cent(gain.gain.value), note))
    own = [c for c in table if c.reference == base]
    if own:
        better = sum(c.significant(ALPHA) and c.gain > 0 for c in own)
        firm = sum(c.holds_over_seeds(ALPHA) and c.gain > 0 for c in own)
        tested = any(not math.isnan(c.p_seeds) for c in own)
        note = "cells significantly above Base; " + (f"{firm} also over seeds" if tested else "seeds not tested")
        tiles.append(Tile("Significant", f"{better} of {len(own)}", note))
    return tiles
