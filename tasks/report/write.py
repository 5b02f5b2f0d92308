"""Writing a report: one page, its figures as SVG and PNG, its tables as CSV and Parquet."""

import base64
from dataclasses import dataclass
from pathlib import Path

from p2rec_core.analysis.comparison import Scores, require_comparable
from p2rec_core.analysis.results import ExperimentResults
from p2rec_core.analysis.tables import all_tables
from tasks.report.figures import FigureSpec, all_figures
from tasks.report.files import csv_bytes, parquet_bytes, whole_directory
from tasks.report.page import draw, render
from tasks.report.style import house_style, png_bytes, svg_bytes


@dataclass(frozen=True)
class ReportPaths:
    """Where a report is.

    Attributes:
        directory: Its directory.
        page: The page, which needs none of the other files.
        figures: Name → (SVG, PNG).
        tables: Name → (CSV, Parquet).
    """

    directory: Path
    page: Path
    figures: dict[str, tuple[Path, Path]]
    tables: dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class FigureFile:
    """A figure of the report as files.

    Attributes:
        title: Its headline.
        caption: How to read it.
        svg: As SVG.
        png: As PNG.
    """

    title: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def data_uri(self) -> str:
        """The PNG as an address that brings its own bytes."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


def write_report(results: ExperimentResults, out_dir: Path) -> ReportPaths:
    """Write the report of an experiment; the same results give the same bytes.

    Args:
        results: The experiment, possibly with cells missing.
        out_dir: Where to; a report that is there is replaced when the new one is complete.

    Raises:
        ResultsIncomplete: There is nothing to compare.
        ReportNotWritten: Something that is no report is at ``out_dir``, or it cannot be written.
    """
    require_comparable(results)
    scores = Scores(results)
    out_dir = out_dir.absolute()
    figures: dict[str, tuple[Path, Path]] = {}
    tables: dict[str, tuple[Path, Path]] = {}
    with whole_directory(out_dir) as building:
        for folder in ("figures", "tables"):
            (building / folder).mkdir()
        for table in all_tables(scores):
            for suffix, data in (("csv", csv_bytes(table)), ("parquet", parquet_bytes(table))):
                (building / "tables" / f"{table.name}.{suffix}").write_bytes(data)
            places = out_dir / "tables"
            tables[table.name] = (places / f"{table.name}.csv", places / f"{table.name}.parquet")
        with house_style():
            specs = all_figures(scores)
            for spec in specs:
                file = _figure_file(spec)
                (building / "figures" / f"{spec.name}.svg").write_bytes(file.svg)
                (building / "figures" / f"{spec.name}.png").write_bytes(file.png)
                places = out_dir / "figures"
                figures[spec.name] = (places / f"{spec.name}.svg", places / f"{spec.name}.png")
            page = render(scores, draw(specs), list(tables))
        (building / "index.html").write_text(page, encoding="utf-8")
    return ReportPaths(out_dir, out_dir / "index.html", figures, tables)


def report_figures(results: ExperimentResults) -> dict[str, FigureFile]:
    """Every figure of the report as files, by name.

    Raises:
        ResultsIncomplete: There is nothing to compare.
    """
    require_comparable(results)
    with house_style():
        return {spec.name: _figure_file(spec) for spec in all_figures(Scores(results))}


def _figure_file(spec: FigureSpec) -> FigureFile:
    figure = spec.combined()
    return FigureFile(spec.title, spec.caption, svg_bytes(figure), png_bytes(figure))
