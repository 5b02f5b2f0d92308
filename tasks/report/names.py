"""How the report names things and writes numbers."""

import math

from p2rec_core.analysis.results import DatasetFacts, Roles, canonical_method

_METHODS = {
    "gru4rec": "GRU4Rec",
    "caser": "Caser",
    "sasrec": "SASRec",
    "fmlp-rec": "FMLP-Rec",
    "e4srec": "E4SRec",
    "pod": "POD",
    "p5": "P5",
    "llamarec": "LlamaRec",
    "p2rec": "P2Rec",
}
_DATASETS = {"beauty": "Beauty", "ml-1m": "MovieLens-1M", "yelp": "Yelp"}

PER_CENT = "\u00a0%"
"""A per-cent sign that stays with its number."""

NONE = "–"
"""What stands where there is no value."""


def method_title(method: str) -> str:
    """A method's name as its authors write it."""
    return _METHODS.get(canonical_method(method), method)


def dataset_title(dataset: str, facts: DatasetFacts | None = None) -> str:
    """A dataset's name, with the word synthetic where its data was drawn by a program."""
    title = _DATASETS.get(dataset, dataset)
    return f"{title} (synthetic)" if facts is not None and facts.synthetic else title


def arm_title(arm: str, roles: Roles) -> str:
    """An arm's name as the paper writes it; ablations keep their own."""
    return dict(zip(roles.main, ("Base", "+CI", "+P2Rec"), strict=True)).get(arm, arm)


def metric(value: float | None) -> str:
    """A metric with four digits."""
    return NONE if value is None or math.isnan(value) else f"{value:.4f}"


def per_cent(value: float | None, digits: int = 1) -> str:
    """A relative gain in per cent, signed, with a true minus."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{100 * value:+.{digits}f}"
    if not text.strip("+-0."):
        text = text[1:]
    return text.replace("-", "−") + PER_CENT


def interval(low: float, high: float) -> str:
    """An interval of relative gains in per cent."""
    if math.isnan(low) or math.isnan(high):
        return NONE
    return f"{per_cent(low)[:-2]} … {per_cent(high)}"


def p_value(p: float | None) -> str:
    """A p-value with two significant digits, and no more than that."""
    if p is None or math.isnan(p):
        return NONE
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0") if p < 0.1 else f"{p:.2f}".removeprefix("0")


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NONE if value is None or math.isnan(value) else f"{round(value):,}"


def short_count(value: float) -> str:
    """A number with three significant digits and a unit, for an axis or a label."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None or math.isnan(value):
        return NONE
    if value < 120:
        return f"{value:.3g} s"
    if value < 7200:
        return f"{value / 60:.3g} min"
    return f"{value / 3600:.3g} h"


def plural(n: int, noun: str) -> str:
    """A count with its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(names: list[str], limit: int = 6) -> str:
    """Names in a row; the end of a long one is only counted."""
    shown, rest = names[:limit], len(names) - limit
    if rest > 0:
        return ", ".join(shown) + f" and {rest} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
