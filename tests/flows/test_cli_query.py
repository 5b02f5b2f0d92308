"""``p2rec query`` as a person, a pipe and a program see its answers."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import app
from flows.report import RunReport
from p2rec_core.errors import SettingsError

SELF_JOIN = "SELECT a.item_id, b.item_id, a.n_train FROM items a JOIN items b ON b.item_idx = a.item_idx + 1 LIMIT 1"
Query = Callable[..., tuple[str, str]]


@pytest.fixture
def query(
    first_run: tuple[Path, RunReport], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Query:
    """Ask the filled store; what was printed, and the notes."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def query(*words: str) -> tuple[str, str]:
        app(["query", *words, "--store", str(first_run[0])], result_action="return_value")
        return tuple(capsys.readouterr())

    return query


def test_two_columns_of_one_name_keep_their_values_in_every_format(query: Query) -> None:
    sql = SELF_JOIN.replace("a.item_id, b.item_id", "a.item_id AS one, b.item_id AS two")
    [expected] = json.loads(query(sql, "--json")[0])
    assert expected["one"] != expected["two"]
    names, values = ["item_id", "item_id_1", "n_train"], [str(value) for value in expected.values()]
    assert list(csv.reader(io.StringIO(query(SELF_JOIN, "--csv")[0]))) == [names, values]
    assert query(SELF_JOIN)[0] == "\t".join(names) + "\n" + "\t".join(values) + "\n"
    assert json.loads(query(SELF_JOIN, "--json")[0]) == [dict(zip(names, expected.values(), strict=True))]


def test_what_json_has_no_number_for_is_null(query: Query) -> None:
    out, _ = query("SELECT 'nan'::FLOAT AS a, [1.5, '-inf'::DOUBLE] AS b, {'c': 'inf'::FLOAT} AS d, 2 AS e", "--json")
    assert json.loads(out, parse_constant=pytest.fail) == [{"a": None, "b": [1.5, None], "d": {"c": None}, "e": 2}]
    assert query("SELECT item_id FROM items WHERE false", "--json")[0] == "[]\n"


def test_a_pipe_gets_all_rows_whole_and_no_note(query: Query) -> None:
    out, note = query("SELECT range, [1, 2, 3, 4, 5, 6, 7] AS many, 1700400000.25::DOUBLE AS at FROM range(150)")
    assert out.splitlines()[150] == "149\t[1, 2, 3, 4, 5, 6, 7]\t1700400000.25"
    assert len(out.splitlines()) == 151
    assert note == "150 rows\n"


def test_a_terminal_gets_the_first_rows_and_times_in_full(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out, note = query("SELECT 1700400000 + range::DOUBLE AS at, range / 3 AS third FROM range(150)")
    assert "1700400099" in out
    assert "1700400100" not in out
    assert "0.333333 " in out
    assert "150 rows, the first 100 shown; --csv prints all" in note


def test_parameters_go_by_name_where_the_query_has_names(query: Query) -> None:
    named = "SELECT $a AS a, $b AS b"
    assert json.loads(query(named, "-p", "b=x=y", "-p", "a=", "--json")[0]) == [{"a": "", "b": "x=y"}]
    assert json.loads(query("SELECT ? AS a, ? AS b", "-p", "b=1", "-p", "2", "--json")[0]) == [{"a": "b=1", "b": "2"}]
    with pytest.raises(SettingsError, match=r"-p 'c=1' is no parameter of the query, which has \$a, \$b\. Write -p"):
        query(named, "-p", "c=1")
    with pytest.raises(SettingsError, match=r"-p '5' is no parameter of the query"):
        query(named, "-p", "5")
    with pytest.raises(SettingsError, match=r"-p gives \$a twice"):
        query(named, "-p", "a=1", "-p", "a=2")
    with pytest.raises(SettingsError, match=r"Values were not provided for the following parameters: b"):
        query(named, "-p", "a=1")
    with pytest.raises(SettingsError, match="--json and --csv exclude each other"):
        query(named, "--json", "--csv")
