"""From a file of one's own to a configuration, an import and a plan."""

import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import app
from p2rec_core.errors import P2RecError
from p2rec_core.settings.data import IngestSettings
from p2rec_core.settings.pipeline import pipeline_settings
from storage.artefacts import Store
from storage.snapshots import publish_snapshot, read_snapshot
from tasks.arrays import learning_curve
from tasks.sources import find_source, registration_path


class Answer(NamedTuple):
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def p2rec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in a directory of its own, beside ``clicks.csv``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rows = "".join(f"u{u},i{(u + n) % 8},{1_600_000_000 + 60 * n}\n" for u in range(8) for n in range(6))
    Path("clicks.csv").write_text("visitor,sku,time\n" + rows)

    def p2rec(command: str) -> Answer:
        try:
            app(shlex.split(command)[1:], result_action="return_value")
        except P2RecError as error:
            return Answer(error.exit_status, capsys.readouterr().out, f"{error.problem} {error.remedy}")
        return Answer(0, *capsys.readouterr())

    return p2rec


def test_the_configuration_is_commented_and_what_follows_works(p2rec):
    call = p2rec("p2rec init clicks.csv")
    assert call.returncode == 0, call.stderr
    text = Path("clicks.toml").read_text()
    values = tomllib.loads(text)
    assert values["ingest"] == {
        "format": "csv",
        "user_column": "visitor",
        "item_column": "sku",
        "timestamp_column": "time",
        "min_user_interactions": 5,
        "min_item_interactions": 5,
        "on_error": "strict",
    }
    lines = text.splitlines()
    assert all(lines[n - 1].startswith("# Here: ") for n, line in enumerate(lines) if " = " in line and line[0] != "#")
    follows = [line.strip() for line in call.stdout.splitlines() if line.startswith("  p2rec ")]
    assert follows == [line.strip("# ") for line in lines if line.startswith("#     p2rec ")]
    assert len(follows) == 3
    imported = p2rec(follows[0])
    assert imported.returncode == 0, imported.stderr
    planned = p2rec(f"{follows[1]} --dry-run --json")
    assert planned.returncode == 0, planned.stderr
    assert {row["slot"]: row["cached"] for row in json.loads(planned.stdout)}["ingest"]
    _, bound, _ = app.parse_args(shlex.split(follows[2])[1:], exit_on_error=False, print_error=False)
    assert bound.arguments["dataset"] == "clicks"


def test_a_file_of_dates_is_recognised_and_imported(p2rec):
    rows = "".join(f"u{u},i{(u + n) % 8},2023-11-05 12:{n:02}:00\n" for u in range(8) for n in range(6))
    Path("dated.csv").write_text("visitor,sku,created_at\n" + rows)
    call = p2rec("p2rec init dated.csv")
    assert call.returncode == 0, call.stderr
    assert "note: Timestamps carry no time zone and were taken as UTC." in call.stdout
    assert p2rec("p2rec data import dated.csv --name dated -c dated.toml").returncode == 0


def test_a_file_without_a_header_loses_no_row(p2rec):
    rows = Path("clicks.csv").read_text().partition("\n")[2]
    Path("bare.csv").write_text(rows)
    assert "looks like data" in p2rec("p2rec init bare.csv").stderr
    call = p2rec("p2rec init bare.csv --no-header --user-column 1 --item-column 2 --timestamp-column 3 --json")
    assert call.returncode == 0, call.stderr
    assert json.loads(call.stdout)["found"]["n_rows"] == 48
    call = p2rec("p2rec data import bare.csv --name bare -c bare.toml --json")
    assert json.loads(call.stdout)["counts"]["n_rows"] == 48
    assert find_source("bare", Store.open(Path(".p2rec"))).ingest_settings(IngestSettings()).header is False
    halves = rows.splitlines(keepends=True)
    Path("days").mkdir()
    Path("days/1.csv").write_text("".join(halves[:24]))
    Path("days/2.csv").write_text("".join(halves[24:]))
    call = p2rec("p2rec data import days --name days -c bare.toml --json")
    assert json.loads(call.stdout)["counts"]["n_rows"] == 48


def test_a_file_with_semicolons_is_recognised_and_imported(p2rec):
    Path("other.csv").write_text(Path("clicks.csv").read_text().replace(",", ";"))
    call = p2rec("p2rec init other.csv")
    assert call.returncode == 0, call.stderr
    assert tomllib.loads(Path("other.toml").read_text())["ingest"]["delimiter"] == ";"
    assert p2rec("p2rec data import other.csv --name other -c other.toml").returncode == 0
    wrong = p2rec("p2rec data import other.csv --name other -c other.toml --delimiter '|'")
    assert (wrong.returncode, "delimiter ; → |" in wrong.stderr) == (3, True)
    call = p2rec("p2rec run -d other --dry-run --set ingest.delimiter=,")
    assert "was imported with ';'" in call.stderr
    assert p2rec("p2rec init other.csv --name x --delimiter ab").returncode == 2


def test_a_pattern_is_looked_at_as_it_is_imported(p2rec):
    header, *rows = Path("clicks.csv").read_text().splitlines(keepends=True)
    for part in range(2):
        Path(f"one-{part}.csv").write_text(header + "".join(rows[part::2]))
    call = p2rec("p2rec init 'one*.csv' --json")
    assert call.returncode == 0, call.stderr
    said = json.loads(call.stdout)
    assert (said["dataset"], said["format"], said["found"]["n_rows"]) == ("one", "csv", 48)
    assert said["next"][0] == "p2rec data import 'one*.csv' --name one --config one.toml"
    assert p2rec(said["next"][0]).returncode == 0
    assert "The pattern two*.csv matches no file" in p2rec("p2rec init 'two*.csv'").stderr


def test_texts_are_looked_at_as_well(p2rec):
    call = p2rec("p2rec init clicks.csv --item-texts nosuch.tsv")
    assert (call.returncode, "nosuch.tsv cannot be read" in call.stderr) == (3, True)
    assert not Path("clicks.toml").exists()
    Path("words.tsv").write_text("item\twords\ni1\ta thing\n")
    call = p2rec("p2rec init clicks.csv --item-texts words.tsv")
    assert (call.returncode, "note: 7 of 8 items have no text." in call.stdout) == (0, True)


def test_nothing_is_overwritten_and_nothing_is_left_beside(p2rec):
    Path("clicks.toml").write_text("mine")
    before = sorted(Path().iterdir())
    call = p2rec("p2rec init clicks.csv")
    assert (call.returncode, Path("clicks.toml").read_text()) == (2, "mine")
    assert "clicks.toml is there already. Name another file with --to" in call.stderr
    assert sorted(Path().iterdir()) == before


def test_json_for_a_program(p2rec):
    call = p2rec("p2rec init clicks.csv --name mine --to other.toml --json")
    said = json.loads(call.stdout)
    assert (said["path"], said["dataset"], said["format"]) == ("other.toml", "mine", "csv")
    assert (said["found"]["n_rows"], said["found"]["core"]["n_users"]) == (48, 8)
    assert said["next"][0] == "p2rec data import clicks.csv --name mine --config other.toml"
    settings = pipeline_settings(dataset="mine", config=Path("other.toml"))
    for name, value in said["settings"].items():
        found = settings
        for part in name.split("."):
            found = getattr(found, part)
        assert found == (tuple(value) if isinstance(value, list) else value), name


def test_the_order_of_the_file_survives_toml(p2rec):
    assert p2rec("p2rec init clicks.csv --timestamp-column none").returncode == 0
    assert pipeline_settings(dataset="x", config=Path("clicks.toml")).ingest.timestamp_column is None
    assert p2rec("p2rec data import clicks.csv --name clicks -c clicks.toml").returncode == 0
    source = find_source("clicks", Store.open(Path(".p2rec")))
    assert source.ingest_settings(IngestSettings()).timestamp_column is None


def test_a_directory_of_partitions(p2rec):
    rows = [(f"u{u}", f"i{n}", n) for u in range(6) for n in range(6)]
    Path("days").mkdir()
    for day in range(2):
        users, items, times = zip(*rows[day::2], strict=True)
        table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
        pq.write_table(table, f"days/2026-01-0{day + 1}.parquet")
    call = p2rec("p2rec init days --json")
    assert call.returncode == 0, call.stderr
    assert json.loads(call.stdout)["found"]["n_rows"] == 36
    assert p2rec(json.loads(call.stdout)["next"][0]).returncode == 0


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("p2rec init none.csv", 3, "none.csv does not exist"),
        ("p2rec init clicks.csv --name beauty", 2, "'beauty' is the name of a known dataset"),
        ("p2rec init clicks.csv --name A/b", 4, "'A/b' cannot be used as a dataset"),
        ("p2rec init clicks.csv --user-column who", 3, "there is no column 'who'"),
        ("p2rec init clicks.csv --to no/where/x.toml --json", 0, ""),
        ("p2rec init clicks.csv --to clicks.csv/x.toml", 4, "cannot be written"),
        ("p2rec run -d Beauty --dry-run", 3, "There is no dataset 'Beauty'. Did you mean beauty?"),
        ("p2rec run -d ../beauty --dry-run", 3, "There is no dataset '../beauty'. Did you mean beauty?"),
        ("p2rec data describe -d samples", 3, "Did you mean sample?"),
        ("p2rec data import clicks.csv --name clicks", 2, "let `p2rec init clicks.csv` write a configuration"),
    ],
)
def test_what_is_wrong_is_said(p2rec, command, status, said):
    call = p2rec(command)
    assert call.returncode == status, call
    assert said in call.stderr


def test_options_of_an_import_go_before_its_configuration(p2rec):
    p2rec("p2rec init clicks.csv")
    call = p2rec("p2rec data import clicks.csv --name clicks -c clicks.toml --min-user-interactions 3 --json")
    assert call.returncode == 0, call.stderr
    store = Store.open(Path(".p2rec"))
    remembered = find_source("clicks", store).ingest_settings(IngestSettings())
    assert (remembered.min_user_interactions, remembered.min_item_interactions) == (3, 5)


def test_a_name_is_not_given_to_another_import_in_silence(p2rec):
    for name in ("clicks", "other"):
        Path(f"{name}.csv").write_text(Path("clicks.csv").read_text())
        assert p2rec(f"p2rec init {name}.csv").returncode == 0
    Path("words.tsv").write_text("item\twords\n" + "".join(f"i{n}\titem {n}\n" for n in range(8)))
    texts = "--item-texts words.tsv"
    assert p2rec(f"p2rec data import clicks.csv --name clicks -c clicks.toml {texts}").returncode == 0
    assert p2rec(f"p2rec data import clicks.csv --name clicks -c clicks.toml {texts}").returncode == 0
    filtered = f"p2rec data import clicks.csv --name clicks -c clicks.toml {texts} --min-user-interactions 3"
    assert p2rec(filtered).returncode == 0
    call = p2rec("p2rec data import other.csv --name clicks -c clicks.toml --timestamp-column none")
    assert call.returncode == 3
    here = Path.cwd()
    for words in (
        f"file {here}/clicks.csv → {here}/other.csv",
        "timestamp_column time → none",
        f"item texts {here}/words.tsv → none",
        "--replace",
    ):
        assert words in call.stderr
    assert "min_user" not in call.stderr
    store = Store.open(Path(".p2rec"))
    assert find_source("clicks", store).texts is not None
    assert p2rec("p2rec data import other.csv --name clicks -c other.toml --replace").returncode == 0
    assert find_source("clicks", store).path == here / "other.csv"
    assert find_source("clicks", store).texts is None
    assert "known dataset" in p2rec("p2rec data import other.csv --name beauty -c other.toml").stderr


def test_what_was_imported_is_listed_and_can_be_forgotten(p2rec):
    p2rec("p2rec init clicks.csv")
    p2rec("p2rec data import clicks.csv --name clicks -c clicks.toml")
    [row] = [row for row in json.loads(p2rec("p2rec data list --json").stdout)["datasets"] if row["imported"]]
    assert row["path"] == str(Path("clicks.csv").resolve())
    assert (row["n_users"], row["n_items"], row["n_interactions"], row["item_texts"]) == (8, 8, 48, None)
    assert str(Path("clicks.csv").resolve()) in p2rec("p2rec data list").stdout.replace("\n", "")
    store = Store.open(Path(".p2rec"))
    with store.write("ingest", "k1", settings={}, inputs={}, fingerprint="f" * 32) as writer:
        writer.table("history", learning_curve([(1, "loss", 3.5)]))
        made = writer.publish({}, 1.0).ref()
    publish_snapshot(store, "clicks", {"ingest": made}, {})
    call = p2rec("p2rec data remove clicks")
    assert (call.returncode, "There are snapshots of 'clicks' (1)" in call.stderr) == (3, True)
    assert p2rec("p2rec data remove clicks --force").returncode == 0
    assert read_snapshot(store, "clicks").number == 1
    assert Path("clicks.csv").exists()
    call = p2rec("p2rec data remove clicks")
    assert (call.returncode, "There is no imported dataset 'clicks'" in call.stderr) == (3, True)
    assert "cannot be removed" in p2rec("p2rec data remove beauty").stderr
    p2rec("p2rec data import clicks.csv --name clicks -c clicks.toml")
    registration_path(store, "clicks").write_text("{}")
    assert "is damaged" in p2rec("p2rec data list").stdout.replace("\n", " ")
    assert p2rec("p2rec data import clicks.csv --name clicks -c clicks.toml").returncode == 0


def test_a_run_may_filter_otherwise_but_not_read_otherwise(p2rec):
    p2rec("p2rec init clicks.csv")
    p2rec("p2rec data import clicks.csv --name clicks -c clicks.toml --min-user-interactions 3")
    source = find_source("clicks", Store.open(Path(".p2rec")))
    whole = IngestSettings.model_validate(IngestSettings().model_dump())  # as after a way through JSON
    assert source.ingest_settings(whole).min_user_interactions == 3
    assert source.ingest_settings(IngestSettings(min_user_interactions=4)).min_user_interactions == 4
    assert source.ingest_settings(IngestSettings(min_user_interactions=4)).user_column == "visitor"
    call = p2rec("p2rec run -d clicks --dry-run --set ingest.user_column=who")
    assert call.returncode == 2
    assert "ingest.user_column = 'who', but the file of 'clicks' was imported with 'visitor'" in call.stderr
    assert "import anew" in call.stderr
