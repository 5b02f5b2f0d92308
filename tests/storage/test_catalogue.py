import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, QueryError, ResourceError, SettingsError, StoreError
from storage.artefacts import Store
from storage.catalogue import Catalogue
from storage.snapshots import Snapshot, publish_snapshot


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("catalogue") / "store")


@pytest.fixture(scope="module")
def publish(store: Store, publish_in: Any) -> Any:
    return partial(publish_in, store)


@pytest.fixture(scope="module")
def snapshot(store: Store, tables: SimpleNamespace, publish: Any) -> Snapshot:
    """One ingest, one backbone, clusters and preferences, and two recommenders with histories."""
    ingest = {name: getattr(tables, name) for name in ("items", "users", "sequences", "test")}
    entries = {
        "ingest": publish("ingest", ingest),
        "backbone": publish("backbone", {"item_embeddings": tables.item_embeddings}),
        "clusters": publish("clusters", {"item_clusters": tables.item_clusters}),
        "preferences": publish("preferences", {"user_preferences": tables.user_preferences}),
    }
    for method in ("gru4rec", "sasrec"):
        entries[f"recommender.{method}.p2rec"] = publish("recommender", {"history": tables.history}, key=method)
    return publish_snapshot(store, "tiny", {slot: made.ref() for slot, made in entries.items()}, {})


@pytest.fixture(scope="module")
def catalogue(store: Store, snapshot: Snapshot) -> Iterator[Catalogue]:
    with Catalogue(store, snapshot) as opened:
        yield opened


def test_there_is_a_view_per_table_with_ids_in_front(catalogue: Catalogue) -> None:
    assert {view: list(columns) for view, columns in catalogue.views()} == {
        "history": ["slot", "epoch", "metric", "value"],
        "item_clusters": ["item_id", "item_idx", "cluster", "distance"],
        "item_embeddings": ["item_id", "item_idx", "source", "trained", "embedding"],
        "items": ["item_id", "item_idx", "n_train"],
        "sequences": ["user_id", "user_idx", "items"],
        "test": ["user_id", "item_id", "user_idx", "item_idx"],
        "user_preferences": ["user_id", "user_idx", "n_train", "preference"],
        "users": ["user_id", "user_idx", "n_train"],
    }
    assert dict(catalogue.views())["item_embeddings"]["embedding"] == "FLOAT[2]"


def test_ids_belong_to_their_rows(catalogue: Catalogue) -> None:
    rows = catalogue.query("SELECT user_id, item_id FROM test ORDER BY user_idx").to_pylist()
    assert rows == [{"user_id": "u1", "item_id": "ü"}, {"user_id": "u2", "item_id": "a"}]


def test_vectors_are_arrays(catalogue: Catalogue) -> None:
    similar = catalogue.query(
        """
        SELECT array_cosine_similarity(a.embedding, b.embedding) AS s
        FROM item_embeddings a, item_embeddings b WHERE a.item_idx = 1 AND b.item_idx = 2
        """
    )
    assert similar.column("s")[0].as_py() == pytest.approx(0.9 / np.hypot(0.9, 0.1))


def test_a_table_of_several_slots_is_their_union(catalogue: Catalogue) -> None:
    rows = catalogue.query("SELECT slot, value FROM history ORDER BY slot").to_pylist()
    assert rows == [
        {"slot": "recommender.gru4rec.p2rec", "value": 0.5},
        {"slot": "recommender.sasrec.p2rec", "value": 0.5},
    ]


def test_parameters_are_bound_whatever_they_hold(catalogue: Catalogue) -> None:
    hostile = "b'; DROP VIEW items--"
    by_position = catalogue.query("SELECT item_idx FROM items WHERE item_id = ?", [hostile])
    by_name = catalogue.query("SELECT item_idx FROM items WHERE item_id = $id", {"id": hostile})
    assert by_position.to_pylist() == by_name.to_pylist() == [{"item_idx": 2}]
    assert catalogue.nearest_items(hostile, 1).to_pylist()[0]["item_id"] == "a"
    for payload in ("' OR 1=1 --", "\0", "$id", "?", "ü'; ATTACH 'x"):
        with pytest.raises(StoreError, match="The snapshot has nothing on user"):
            catalogue.user_preference(payload)
    assert catalogue.query("SELECT count(*) AS n FROM items").to_pylist() == [{"n": 3}]


def test_nearest_items(catalogue: Catalogue) -> None:
    rows = catalogue.nearest_items("a", 5).to_pylist()
    assert [row["item_id"] for row in rows] == ["b'; DROP VIEW items--", "ü"]
    assert rows[1]["similarity"] == pytest.approx(0)
    assert catalogue.nearest_items("a", 1).num_rows == 1
    with pytest.raises(StoreError, match=r"The snapshot has nothing on item 'x'\. See the view 'items'"):
        catalogue.nearest_items("x")


def test_user_preference(catalogue: Catalogue) -> None:
    assert catalogue.user_preference("u1").to_pylist() == [
        {"cluster": 1, "preference": 0.75},
        {"cluster": 0, "preference": 0.25},
    ]


def test_cluster_members(catalogue: Catalogue) -> None:
    assert catalogue.cluster_members(0).column("item_idx").to_pylist() == [2, 1]
    assert catalogue.cluster_members(0, 1).column("item_idx").to_pylist() == [2]
    assert catalogue.cluster_members(9).num_rows == 0


def test_ready_queries_ask_for_a_slot_where_there_are_several(
    store: Store, snapshot: Snapshot, tables: SimpleNamespace, publish: Any
) -> None:
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(3, dtype=np.float32).ravel()), 3)
    other = tables.item_embeddings.set_column(3, "embedding", wide)
    ref = publish("backbone", {"item_embeddings": other}, key="other").ref()
    both = publish_snapshot(store, "tiny", snapshot.entries | {"backbone.gru4rec": ref}, {})
    with Catalogue(store, both) as catalogue:
        assert dict(catalogue.views())["item_embeddings"]["embedding"] == "FLOAT[]"
        with pytest.raises(
            StoreError, match=r"'item_embeddings' needs a slot\. Pass one of: backbone, backbone\.gru4rec"
        ):
            catalogue.nearest_items("a")
        with pytest.raises(StoreError, match="has no slot 'x' OR 1=1'"):
            catalogue.nearest_items("a", slot="x' OR 1=1")
        assert catalogue.nearest_items("a", 1, slot="backbone").to_pylist()[0]["item_idx"] == 2
        assert catalogue.nearest_items("a", slot="backbone.gru4rec").column("similarity").to_pylist() == [
            0,
            0,
        ]


def test_ready_queries_name_what_the_snapshot_lacks(store: Store, snapshot: Snapshot) -> None:
    only = publish_snapshot(store, "tiny", {"backbone": snapshot.entries["backbone"]}, {})
    with Catalogue(store, only) as catalogue:
        with pytest.raises(StoreError, match=r"no table 'user_preferences'\. It has: item_embeddings"):
            catalogue.user_preference("u1")
        assert list(dict(catalogue.views())["item_embeddings"]) == [
            "item_idx",
            "source",
            "trained",
            "embedding",
        ]


NOT_SELECT = [
    "COPY (SELECT 1) TO '{out}'",
    "COPY items TO '{artefacts}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{artefacts}/x.csv'",
    "ATTACH '{out}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "RESET threads",
    "PRAGMA threads = 1",
    "EXPORT DATABASE '{out}'",
    "CREATE TABLE t (a INTEGER)",
    "CREATE OR REPLACE VIEW items AS SELECT 1",
    "DROP VIEW items",
    "INSERT INTO items VALUES (1)",
    "DELETE FROM items",
    "CALL pragma_version()",
    "PREPARE p AS SELECT 1",
    "CHECKPOINT",
    "SELECT 1; DROP VIEW items",
    "",
    "-- nothing",
]
OUT_OF_REACH = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd.csv'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{artefacts}/../store.json')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_parquet('https://example.org/a.parquet')",
    "SELECT * FROM read_parquet('s3://bucket/a.parquet')",
    "SELECT * FROM query('DROP VIEW items')",
    "SELECT * FROM python_variable",
    "SELECT getenv('HOME')",
    "SELEC 1",
]


def _fill(sql: str, store: Store, tmp_path: Path) -> str:
    return sql.replace("{out}", str(tmp_path / "out")).replace("{artefacts}", str(store.root / "artefacts"))


@pytest.mark.parametrize("sql", NOT_SELECT)
def test_statements_that_do_not_only_read_are_refused(
    store: Store, catalogue: Catalogue, tmp_path: Path, sql: str
) -> None:
    before = sorted([*tmp_path.rglob("*"), *store.root.rglob("*")])
    with pytest.raises(QueryError, match="Only one SELECT statement can be run here, not "):
        catalogue.query(_fill(sql, store, tmp_path))
    assert sorted([*tmp_path.rglob("*"), *store.root.rglob("*")]) == before
    assert catalogue.query("SELECT count(*) AS n FROM items").to_pylist() == [{"n": 3}]


@pytest.mark.parametrize("sql", OUT_OF_REACH)
def test_nothing_but_the_views_is_within_reach(store: Store, catalogue: Catalogue, tmp_path: Path, sql: str) -> None:
    python_variable = pa.table({"a": [1]})
    with pytest.raises(QueryError, match=r"(?s)DuckDB refuses the query: .*Views: history, item_clusters"):
        catalogue.query(_fill(sql, store, tmp_path))
    assert python_variable.num_rows == 1


def test_the_connection_itself_is_locked_down(store: Store, catalogue: Catalogue, tmp_path: Path) -> None:
    """The check of statements is one fence; DuckDB's own is another, so try without the first."""
    connection = catalogue._connection
    for sql in NOT_SELECT[:9]:
        if sql.startswith(("COPY items", "EXPLAIN", "PRAGMA")):
            continue
        with pytest.raises(Exception, match=r"disabled|locked|Cannot access"):
            connection.execute(_fill(sql, store, tmp_path))
    with pytest.raises(Exception, match="Cannot access"):
        connection.execute(f"COPY (SELECT 1) TO '{store.root / 'artefacts' / 'x.csv'}'")


def test_describe_show_summarize_and_with_are_selects(catalogue: Catalogue) -> None:
    assert catalogue.query("DESCRIBE items").num_rows == 3
    assert catalogue.query("SHOW TABLES").num_rows == 8
    assert catalogue.query("SUMMARIZE items").num_rows == 3
    assert catalogue.query("WITH n AS (SELECT 1 AS a) FROM n").to_pylist() == [{"a": 1}]


def test_a_damaged_table_is_named(store: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(store.root, tmp_path / "copy")
    store = Store.open(tmp_path / "copy")
    path = store.load(snapshot.entries["ingest"]).path / "items.parquet"
    path.write_bytes(b"torn")
    with pytest.raises(ArtefactDamaged, match=r"items\.parquet is damaged: expected sha256"):
        Catalogue(store, snapshot)


def test_two_ingests_in_a_snapshot_are_refused(store: Store, snapshot: Snapshot) -> None:
    twice = dataclasses.replace(snapshot, entries=snapshot.entries | {"other": snapshot.entries["ingest"]})
    with pytest.raises(StoreError, match="several tables 'users', in ingest, other"):
        Catalogue(store, twice)


def test_a_path_that_duckdb_would_expand_is_refused(tmp_path: Path, tables: SimpleNamespace) -> None:
    store = Store.open(tmp_path / "a[b]")
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        writer.table("items", tables.items)
        ref = writer.publish({}, 0.0).ref()
    with pytest.raises(StoreError, match=r"has a character that DuckDB reads as a pattern: \* \? or \["):
        Catalogue(store, publish_snapshot(store, "tiny", {"ingest": ref}, {}))


def test_a_quote_in_the_path_is_only_a_character(tmp_path: Path, tables: SimpleNamespace) -> None:
    store = Store.open(tmp_path / "o'brien")
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        writer.table("items", tables.items)
        ref = writer.publish({}, 0.0).ref()
    with Catalogue(store, publish_snapshot(store, "tiny", {"ingest": ref}, {})) as catalogue:
        assert catalogue.query("FROM items").num_rows == 3


def test_a_table_that_changes_between_two_queries_is_not_read_any_more(tmp_path: Path, tables: SimpleNamespace) -> None:
    """DuckDB compares no checksum, and some single bits give it other rows without an error."""
    store = Store.open(tmp_path / "store")
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        writer.table("items", tables.items)
        artefact = writer.publish({}, 0.0)
    path = artefact.path / "items.parquet"
    good = path.read_bytes()
    with Catalogue(store, publish_snapshot(store, "tiny", {"ingest": artefact.ref()}, {})) as catalogue:
        expected = catalogue.query("FROM items")
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(ArtefactDamaged, match=r"items\.parquet is damaged: expected sha256"):
                catalogue.query("FROM items")
        path.unlink()
        with pytest.raises(ArtefactMissing, match=r"items\.parquet is missing"):
            catalogue.query("FROM items")
        path.write_bytes(good)
        assert catalogue.query("FROM items").equals(expected)


def test_a_table_that_is_collected_while_the_snapshot_is_opened_is_missing(
    tmp_path: Path, tables: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        writer.table("items", tables.items)
        artefact = writer.publish({}, 0.0)
    snapshot = publish_snapshot(store, "tiny", {"ingest": artefact.ref()}, {})
    real, looks = Catalogue._verify, iter(range(9))

    def verify_then_lose(catalogue: Catalogue) -> None:
        real(catalogue)
        if next(looks) == 0:
            shutil.rmtree(artefact.path)

    monkeypatch.setattr(Catalogue, "_verify", verify_then_lose)
    with pytest.raises(ArtefactMissing, match=r"items\.parquet is missing"):
        Catalogue(store, snapshot)


def test_a_statement_that_is_refused_is_named_and_so_is_what_may_be_asked(catalogue: Catalogue) -> None:
    for sql, named in (("SELECT 1; DROP VIEW items", "SELECT and DROP"), ("", "nothing"), ("DROP VIEW items", "DROP")):
        with pytest.raises(QueryError) as caught:
            catalogue.query(sql)
        assert caught.value.problem == f"Only one SELECT statement can be run here, not {named}."
        assert caught.value.remedy == "The catalogue is read-only: send one SELECT at a time."


def test_columns_of_one_name_are_told_apart(catalogue: Catalogue) -> None:
    pairs = catalogue.query(
        "SELECT a.item_idx, b.item_idx, b.item_id, 0 AS item_idx_1 FROM items a, items b "
        "WHERE a.item_idx = 1 AND b.item_idx = 2"
    )
    assert pairs.to_pylist() == [{"item_idx": 1, "item_idx_2": 2, "item_id": "b'; DROP VIEW items--", "item_idx_1": 0}]


def test_named_parameters_are_those_with_a_name(catalogue: Catalogue) -> None:
    assert catalogue.named_parameters("SELECT $b, $a, $b") == ["a", "b"]
    assert catalogue.named_parameters("SELECT ?, ?") == catalogue.named_parameters("SELECT 1") == []
    with pytest.raises(QueryError, match="DuckDB refuses the query: Parser Error"):
        catalogue.named_parameters("SELEC $a")


def test_a_query_spills_to_a_directory_that_is_gone_afterwards(
    store: Store, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Catalogue(store, snapshot, memory_limit="40MB") as catalogue:
        [folder] = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        sql = "SELECT count(*) AS n FROM (SELECT range, hash(range) AS h FROM range(4000000) ORDER BY h)"
        assert catalogue.query(sql).to_pylist() == [{"n": 4_000_000}]
        assert any(folder.iterdir())
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_said_with_what_to_do(store: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    with Catalogue(store, snapshot, memory_limit="40MB") as catalogue:
        with pytest.raises(ResourceError, match=r"40MB of memory is not enough: .* --memory") as caught:
            catalogue.query("SELECT list(range), list(hash(range)) FROM range(8000000)")
        assert "temp_directory" not in str(caught.value)
        assert catalogue.query("SELECT count(*) AS n FROM items").to_pylist() == [{"n": 3}]
    with pytest.raises(ResourceError, match="1KB of memory is not enough"):
        Catalogue(store, snapshot, memory_limit="1KB")
    with pytest.raises(SettingsError, match=r"'much' is no size of memory\."):
        Catalogue(store, snapshot, memory_limit="much")


def test_closing_it_again_is_safe_and_nothing_is_left(
    store: Store, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with Catalogue(store, snapshot) as catalogue:
        assert len(list(place.iterdir())) == 1
    assert not any(place.iterdir())
    catalogue.close()


def test_where_there_is_no_place_for_temporary_files_it_is_said(
    store: Store, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"There is no place for temporary files: No such file .* TMPDIR\."):
        Catalogue(store, snapshot)
