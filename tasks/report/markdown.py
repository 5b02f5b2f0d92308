"""The report in Markdown, for places that show no pages."""

from collections.abc import Sequence

from p2rec_core.analysis.comparison import Scores, require_comparable
from p2rec_core.analysis.results import ExperimentResults
from tasks.report import views
from tasks.report.sentences import ABOUT_PROBES, headline

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"} | {"\n": " ", "\r": " "})


def report_markdown(results: ExperimentResults) -> str:
    """What the results say, Table 2 under ``keep``, mean gains, what the knowledge carries and what is missing.

    Raises:
        ResultsIncomplete: There is nothing to compare.
    """
    require_comparable(results)
    scores = Scores(results)
    top = headline(scores)
    lines = [f"# {escaped(results.name)}", "", f"**{escaped(top.verdict)}**", ""]
    lines += [f"- {escaped(sentence)}" for sentence in (*top.findings, *top.shortfalls)]
    for dataset in results.dataset_names():
        lines += ["", *view_markdown(views.results_view(scores, dataset, "keep"))]
    lines += ["", *view_markdown(views.mean_gains_view(scores, "keep"))]
    if probed := [name for name in results.dataset_names() if results.datasets[name].probes]:
        lines += ["", "## What the knowledge carries", "", " ".join(escaped(text) for text in ABOUT_PROBES)]
        for dataset in probed:
            lines += ["", *view_markdown(views.probes_view(scores, dataset))]
    if results.missing:
        lines += ["", "## Missing cells", "", *(f"- {escaped(str(cell))}" for cell in results.missing)]
        lines += ["", f"They are made by: {escaped(results.command)}"] if results.command else []
    return "\n".join(lines) + "\n"


def view_markdown(view: views.View) -> list[str]:
    """A table in Markdown."""
    align = "---:" if view.numeric else "---"
    head = ["| " + " | ".join(escaped(column) for column in view.columns) + " |"]
    head.append("|" + " --- |" + f" {align} |" * (len(view.columns) - 1))
    return [f"**{escaped(view.caption)}**", "", *head, *(_row(line) for line in view.lines)]


def escaped(text: str) -> str:
    """Text that stays text in Markdown, on one line."""
    return text.translate(_SPECIAL)


def _row(line: views.Line) -> str:
    title = f"{line.title} ({line.note})" if line.note else line.title
    return (
        "| "
        + " | ".join([escaped(title), *(_entry(entry.main + entry.marks, entry.notes) for entry in line.entries)])
        + " |"
    )


def _entry(main: str, notes: Sequence[str]) -> str:
    return " ".join([escaped(main), *([f"({escaped('; '.join(notes))})"] if notes else [])])
