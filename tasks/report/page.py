"""The page: everything that the template shows, and the template itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from p2rec_core.analysis.comparison import Scores
from p2rec_core.analysis.results import Cell
from p2rec_core.metrics import SEEN_POLICIES
from tasks.report import views
from tasks.report.figures import FigureSpec, Mark
from tasks.report.files import json_for_reading
from tasks.report.names import arm_title, dataset_title, method_title, plural, seconds
from tasks.report.sentences import ABOUT_PROBES, headline

_HERE = Path(__file__).parent

_SHAPES = {
    "o": "M7 2a5 5 0 1 0 .001 0z",
    "s": "M2.5 2.5h9v9h-9z",
    "D": "M7 1l6 6-6 6-6-6z",
    "^": "M7 1.5l6 11H1z",
    "v": "M7 12.5l-6-11h12z",
}


@dataclass(frozen=True)
class Drawing:
    """A figure as the page shows it.

    Attributes:
        spec: The figure.
        svgs: Its panels as SVG elements.
        number: Its number on the page.
    """

    spec: FigureSpec
    svgs: Sequence[str]
    number: int


@dataclass(frozen=True)
class MissingGroup:
    """Missing cells of one dataset and method.

    Attributes:
        title: Method and dataset.
        arms: Arms with their seeds, in words.
    """

    title: str
    arms: str


def draw(figures: Sequence[FigureSpec]) -> dict[str, Drawing]:
    """The panels of every figure as SVG elements, by the figure's name; call in ``house_style``."""
    return {
        spec.name: Drawing(spec, [panel.svg(f"{spec.name}-{i}") for i, panel in enumerate(spec.panels)], number)
        for number, spec in enumerate(figures, start=1)
    }


def render(scores: Scores, drawings: dict[str, Drawing], tables: Sequence[str]) -> str:
    """The page as HTML; every name in it is escaped.

    Args:
        scores: The experiment.
        drawings: Its figures.
        tables: Names of the table files beside the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    results = scores.results
    datasets = [dataset_title(name, results.datasets[name]) for name in results.dataset_names()]
    policies = [seen for seen in SEEN_POLICIES if any(seen in cell.ranks for cell in results.cells)]
    return environment.get_template("report.html.j2").render(
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        name=results.name,
        scope=_scope(scores, datasets),
        headline=headline(scores),
        drawings=drawings,
        shape=_shape,
        results={s: [views.results_view(scores, d, s) for d in results.dataset_names()] for s in policies},
        mean_gains={s: views.mean_gains_view(scores, s) for s in policies},
        ablations=views.ablations_view(scores),
        cost=views.cost_view(scores),
        probes=[views.probes_view(scores, d) for d in results.dataset_names() if results.datasets[d].probes],
        about_probes=ABOUT_PROBES,
        datasets=views.datasets_view(scores),
        arms=views.arms_view(scores),
        budget=views.budget_view(scores),
        cells=views.cells_view(scores),
        missing=_missing(results.missing, scores),
        command=results.command,
        machines=_facts(scores, "machine"),
        versions=_facts(scores, "versions"),
        total=_total(scores),
        tables=tables,
    )


def _scope(scores: Scores, datasets: Sequence[str]) -> str:
    results = scores.results
    methods = dict.fromkeys(method_title(m) for d in results.dataset_names() for m in results.methods(d))
    n_seeds = len({cell.cell.seed for cell in results.cells})
    text = f"{', '.join(methods)} on {', '.join(datasets)}; {plural(n_seeds, 'seed')}, "
    return text + plural(len(results.cells), "trained model")


def _missing(cells: Sequence[Cell], scores: Scores) -> list[MissingGroup]:
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.method), {}).setdefault(cell.arm, []).append(str(cell.seed))
    return [
        MissingGroup(
            f"{method_title(method)} on {dataset_title(dataset)}",
            "; ".join(
                f"{arm_title(arm, scores.results.roles)}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}"
                for arm, seeds in arms.items()
            ),
        )
        for (dataset, method), arms in groups.items()
    ]


def _facts(scores: Scores, name: str) -> list[str]:
    """Different values of a fact among the cells, in words."""
    texts = (json_for_reading(cell.facts.get(name)) for cell in scores.results.cells)
    return list(dict.fromkeys(text for text in texts if text))


def _total(scores: Scores) -> str:
    walls = [cell.facts["wall_s"] for cell in scores.results.cells if cell.facts.get("wall_s") is not None]
    return f"{seconds(sum(walls))} for {plural(len(walls), 'cell')}" if walls else ""


def _shape(mark: Mark) -> dict[str, str]:
    """Outline and paint of a legend's marker."""
    fill = mark.colour if mark.filled else "none"
    return {"d": _SHAPES.get(mark.marker, _SHAPES["o"]), "fill": fill, "stroke": mark.colour}
