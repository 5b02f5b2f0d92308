"""The report of an experiment: one self-contained page, figures and tables.

Drawing is loaded when a report is made, and not before: the command line starts without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2rec_core.analysis.results import ExperimentResults
    from tasks.report.write import FigureFile, ReportPaths


def write_report(results: "ExperimentResults", out_dir: Path) -> "ReportPaths":
    """Write the report of an experiment, see ``tasks.report.write``."""
    from tasks.report.write import write_report

    return write_report(results, out_dir)


def report_figures(results: "ExperimentResults") -> "dict[str, FigureFile]":
    """Every figure as SVG and PNG, see ``tasks.report.write``."""
    from tasks.report.write import report_figures

    return report_figures(results)


def report_markdown(results: "ExperimentResults") -> str:
    """The report in Markdown, see ``tasks.report.markdown``."""
    from tasks.report.markdown import report_markdown

    return report_markdown(results)
