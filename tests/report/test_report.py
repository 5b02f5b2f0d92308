"""The page, its figures and its files."""

import csv
import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from p2rec_core.analysis.comparison import Scores
from p2rec_core.analysis.results import Cell, CellResult, ExperimentResults, ResultsIncomplete
from tasks.report import names, report_figures, report_markdown, write_report
from tasks.report.figures import overview
from tasks.report.files import MARKER, ReportNotWritten, whole_directory
from tasks.report.sentences import headline
from tasks.report.style import house_style

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Elements of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sums(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def results(make) -> ExperimentResults:
    return make(n_users=500, seeds=(1, 2), missing=[Cell("beauty", "sasrec", "ci", 2)])


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("reports") / "report")


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written.page.read_text(encoding="utf-8"))


def test_everything_is_there(written):
    assert set(written.figures) == {
        "overview",
        "fig4-cost",
        "fig5-agreement",
        "fig6-activity",
        "item-frequency",
        "item-targets",
        "ablations",
        "learning-curves",
    }
    assert len(written.tables) == 17
    for svg, png in written.figures.values():
        assert svg.read_bytes().startswith(b"<?xml")
        assert png.read_bytes().startswith(b"\x89PNG")
    listed = json.loads((written.directory / MARKER).read_text())["files"]
    assert listed == {name: total for name, total in sums(written.directory).items() if name != MARKER}
    assert [path.name for path in written.directory.parent.iterdir()] == ["report"]


def test_the_same_results_give_the_same_bytes(results, written, tmp_path):
    again = dataclasses.replace(results, cells=list(reversed(results.cells)))
    assert sums(write_report(again, tmp_path / "again").directory) == sums(written.directory)


def test_the_page_needs_nothing_else(page):
    assert not page.having("script")
    assert not page.having("link")
    assert not page.having("img")
    policy = next(a["content"] for a in page.having("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for attributes in page.having("a"):
        assert not str(attributes["href"]).startswith(("http:", "https:", "//"))


def test_links_lead_somewhere(page, written):
    identifiers = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for attributes in page.having("a"):
        target = str(attributes["href"])
        assert target[1:] in identifiers if target.startswith("#") else (written.directory / target).is_file()
    for attributes in page.having("use"):
        assert str(attributes["xlink:href"])[1:] in identifiers


def test_tables_and_figures_speak_to_screen_readers(page):
    for attributes in page.having("th"):
        assert attributes["scope"] in ("col", "row")
    images = [a for _, a in page.elements if a.get("role") == "img"]
    assert len(images) == 9
    assert all(len(str(a["aria-label"])) > 20 for a in images)
    assert len(page.having("caption")) == len(page.having("table"))


def test_the_page_says_what_is_missing_and_how_to_make_it(page):
    text = " ".join("".join(page.text).split())
    assert "1 cell of the plan is missing" in text
    assert "SASRec on Beauty: +CI, seed 2" in text
    assert "They are made by p2rec experiment table2" in text


def test_the_papers_values_stand_beside_ours(page):
    text = "".join(page.text)
    assert "paper 0.0424" in text
    assert "paper +8.1\u00a0%" in text
    assert "literature" in text
    assert "learns nothing" in text


def test_what_the_knowledge_carries_stands_beside_chance(results, page, written):
    assert "#knowledge" in [a["href"] for a in page.having("a")]
    text = " ".join("".join(page.text).split())
    section = text[text.index("What the knowledge carries") :]
    assert "what vectors that carry nothing would give" in section
    assert "Next item, NDCG@10" in section
    assert "NDCG@10, cold target" in section
    assert "NDCG@10, target 1–9 × in training" in section
    markdown = report_markdown(results)
    assert "## What the knowledge carries" in markdown
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in markdown.splitlines() if " | " in line}
    # one line for arms that are given the same; the dataset has no categories, and none are made up
    assert lines["+P2Rec and no-gate"].startswith("| +P2Rec and no-gate | tuned | 64 | 0.0400 | 0.0200 | ")
    assert lines["+P2Rec and no-gate"].endswith(" | 0.0800 | – |")
    assert "| 0.0008 (1,400 users) |" in lines["Chance"]
    assert lines["Chance"].endswith("| – (0 items) |")
    rows = pq.read_table(written.tables["probes"][1]).to_pylist()
    assert [row["arm"] for row in rows if row["probe"] == "copurchase"] == ["p2rec", "no-gate", "random-knowledge"]
    assert {(row["value"], row["chance"]) for row in rows if row["probe"] == "category"} == {(None, None)}


def test_knowledge_that_differs_between_backbones_names_them(make):
    results = make(methods=("sasrec", "caser"), n_users=80, seeds=(1,))
    facts = results.datasets["beauty"]
    tuned, noise = facts.probes
    probes = [dataclasses.replace(tuned, methods=("caser",)), dataclasses.replace(noise, methods=("sasrec", "caser"))]
    apart = dataclasses.replace(results, datasets={"beauty": dataclasses.replace(facts, probes=probes)})
    markdown = report_markdown(apart)
    assert "| +P2Rec and no-gate (Caser) | tuned |" in markdown
    assert "| random-knowledge | random |" in markdown


def test_tables_as_files_hold_the_same(written):
    for csv_path, parquet_path in written.tables.values():
        table = pq.read_table(parquet_path)
        rows = list(csv.reader(csv_path.read_text(encoding="utf-8").splitlines()))
        assert rows[0] == table.column_names
        assert len(rows) - 1 == table.num_rows
    metrics = pq.read_table(written.tables["metrics"][1]).to_pylist()
    first = next(r for r in metrics if (r["dataset"], r["arm"], r["metric"]) == ("beauty", "base", "NDCG@10"))
    assert first["paper"] == 0.0424
    text = written.tables["metrics"][0].read_text(encoding="utf-8")
    assert repr(first["mean"]) in text
    assert "nan" not in text


HOSTILE = "<script>alert('x')</script>\"--> $x^2$ | & 日本"


def test_names_cannot_inject(make, tmp_path):
    results = make(
        datasets=(HOSTILE,), methods=("<b>m</b>",), arms={"base": 0.0, "p2rec": 0.1, "<i>a": 0.0}, n_users=80
    )
    results = dataclasses.replace(
        results, name=HOSTILE, command=HOSTILE, arms={"<i>a": HOSTILE}, missing=[Cell(HOSTILE, "<b>", "<s>", 1)]
    )
    written = write_report(results, tmp_path / "report")
    page = Page(written.page.read_text(encoding="utf-8"))
    assert not page.having("script")
    assert not page.having("s")
    assert {a.get("class") for a in page.having("i")} <= {None}
    assert HOSTILE in "".join(page.text)
    for svg, _ in written.figures.values():
        assert b"<script" not in svg.read_bytes()
    markdown = report_markdown(results)
    assert "<script" not in markdown.replace("\\<script", "")
    assert "x | &" not in markdown


@pytest.mark.parametrize("arms", [("base", "p2rec"), ("base", "ci"), ("base", "random-knowledge")])
def test_every_part_of_an_experiment_makes_a_report(make, tmp_path, arms):
    results = make(arms=dict.fromkeys(arms, 0.1), seeds=(1,), n_users=60, standalone=False)
    facts = {
        name: dataclasses.replace(f, cost=(), agreement={}, no_learning={}, probes=())
        for name, f in results.datasets.items()
    }
    cells = [dataclasses.replace(c, curve=(), facts={}, ranks={"keep": c.ranks["keep"]}) for c in results.cells]
    bare = dataclasses.replace(results, datasets=facts, cells=cells, command="")
    page = Page(write_report(bare, tmp_path / "report").page.read_text(encoding="utf-8"))
    assert page.having("table")
    assert "What the knowledge carries" not in "".join(page.text)
    assert "What the knowledge carries" not in report_markdown(bare)


@pytest.mark.parametrize("ranks", [[0, 0, 0], [2]])
def test_degenerate_ranks_make_a_report(make, tmp_path, ranks):
    results = make(seeds=(1,), n_users=60)
    users = np.arange(1, len(ranks) + 1, dtype=np.int32)
    values = {"keep": np.array(ranks, np.int32), "mask": np.array(ranks, np.int32)}
    cells = [CellResult(c.cell, users, values) for c in results.cells]
    facts = {
        name: dataclasses.replace(f, no_learning={}, cost=(), agreement={}) for name, f in results.datasets.items()
    }
    degenerate = dataclasses.replace(results, cells=cells, datasets=facts)
    assert "nan" not in write_report(degenerate, tmp_path / "report").page.read_text(encoding="utf-8").lower().split()
    assert "cannot be told from Base" in report_markdown(degenerate) or "No cell has both" in report_markdown(
        degenerate
    )


def test_nothing_to_report_leaves_nothing(make, tmp_path):
    results = make(arms={"p2rec": 0.0}, n_users=40)
    for call in (lambda: write_report(results, tmp_path / "r"), lambda: report_markdown(results)):
        with pytest.raises(ResultsIncomplete, match="has no backbone with 'base' and another arm"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_replaced_only_by_a_whole_one(tmp_path, written):
    target = tmp_path / "report"
    with whole_directory(target) as building:
        (building / "index.html").write_text("first")

    def fail() -> None:
        with whole_directory(target) as building:
            (building / "index.html").write_text("second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (target / "index.html").read_text() == "first"
    with whole_directory(target) as building:
        (building / "index.html").write_text("third")
        assert (target / "index.html").read_text() == "first"
    assert (target / "index.html").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_is_no_report_is_never_replaced(results, tmp_path):
    for target in (tmp_path / "thesis", tmp_path / "file"):
        if target.name == "thesis":
            target.mkdir()
            (target / "chapter1").write_text("years of work")
        else:
            target.write_text("years of work")
        with pytest.raises(ReportNotWritten, match="is there already and is not a report of P2Rec"):
            write_report(results, target)
    assert (tmp_path / "thesis" / "chapter1").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportNotWritten, match=r"cannot be written to .*file/report: "):
        write_report(results, tmp_path / "file" / "report")


def test_an_empty_directory_may_become_a_report(tmp_path):
    with whole_directory(tmp_path / "a" / "b") as building:
        (building / "x").write_text("x")
    assert (tmp_path / "a" / "b" / "x").exists()


def test_the_verdict_follows_the_data(make):
    def verdict(effect: float) -> str:
        arms = {"base": 0.0, "ci": 0.0, "p2rec": effect}
        return headline(Scores(make(arms=arms, n_users=4000))).verdict

    assert verdict(0.4).startswith("+P2Rec beats Base by ")
    assert " below Base" in verdict(-0.4)
    same = make(arms={"base": 0.0, "p2rec": 0.0}, n_users=200)
    ranks = next(iter(same.cells)).ranks
    equal = dataclasses.replace(same, cells=[dataclasses.replace(c, ranks=ranks) for c in same.cells])
    assert "cannot be told from Base (0.0\u00a0%)" in headline(Scores(equal)).verdict


def test_the_shortfalls_are_named(make):
    results = make(seeds=(1,), n_users=900, synthetic=True, missing=[Cell("beauty", "sasrec", "ci", 1)])
    cells = [
        dataclasses.replace(c, facts=dict(c.facts) | {"trials": 12 if c.cell.arm == "p2rec" else 6})
        for c in results.cells
    ]
    facts = {name: dataclasses.replace(f, language_model="llama (random-init)") for name, f in results.datasets.items()}
    text = " ".join(headline(Scores(dataclasses.replace(results, cells=cells, datasets=facts))).shortfalls)
    assert "rest on one seed of an arm: " in text
    assert "unequal numbers of trials: SASRec on Beauty (Base 6, +P2Rec 12)" in text
    assert "Synthetic data" in text
    assert "random weights: llama (random-init)" in text
    assert "occur in no training part" in text
    assert "1 cell of the plan is missing" in text


def test_markdown_has_the_table_and_figures_bring_their_own_bytes(results):
    text = report_markdown(results)
    assert "| SASRec +P2Rec | 2 |" in text
    figures = report_figures(results)
    assert figures["overview"].data_uri.startswith("data:image/png;base64,iVBOR")
    assert figures["overview"].title == "Gain of +P2Rec, cell by cell"


def test_a_legend_is_whole_above_a_single_panel(results):
    spec = overview(Scores(results))
    with house_style():
        figure = dataclasses.replace(spec, panels=spec.panels[:1]).combined()
        figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [mark.label for mark in spec.legend]
    extent = legend.get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width
    assert extent.y1 <= figure.bbox.height


def test_numbers_are_written_for_people():
    assert names.per_cent(0.0812) == "+8.1\u00a0%"
    assert names.per_cent(-0.0812) == "−8.1\u00a0%"
    assert names.per_cent(-0.0001) == "0.0\u00a0%"
    assert names.per_cent(math.nan) == "–"
    assert names.interval(-0.01, 0.02) == "−1.0 … +2.0\u00a0%"
    assert [names.p_value(p) for p in (0.0002, 0.012, 0.5, 1.0, math.nan)] == ["< .001", ".012", ".50", "1.00", "–"]
    assert [names.seconds(s) for s in (1.5, 600, 7200)] == ["1.5 s", "10 min", "2 h"]
    assert [names.short_count(n) for n in (0, 950, 1200, 3.4e6)] == ["0", "950", "1.2 k", "3.4 M"]
    assert names.listed(["a"]) == "a"
    assert names.listed(["a", "b", "c"]) == "a, b and c"
    assert names.listed(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"


def test_asking_for_a_report_is_what_loads_the_drawing():
    code = "import sys, tasks.report; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & {"matplotlib", "jinja2", "scipy", "pyarrow", "torch"}
