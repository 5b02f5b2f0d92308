"""Recommendations, neighbours and exports of a snapshot, as tables and files."""

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from p2rec_core.errors import ArtefactDamaged, DataError, ModelError, SettingsError
from p2rec_core.inference import Recommender
from storage.artefacts import Store
from storage.snapshots import publish_snapshot
from tasks.arrays import vectors
from tasks.export import (
    export_model,
    export_npy,
    export_parquet,
    item_place,
    item_vectors,
    neighbours,
)
from tasks.outputs import METADATA, OutputNotWritten, write_directory, write_table
from tasks.recommendation import (
    COLUMNS,
    Unknown,
    allowed_items,
    given_users,
    known_users,
    open_recommender,
    recommend,
)

ROOT = Path(__file__).parents[2]
ODD_USERS = ["007", "-1", "a b", 'say "hi"', "ü, ö", "日本", "null", "\u2028", "{}", "'; --"]
ODD_ITEMS = ["-n", "1e3", "00", " ", "i,j", '"', "a b", "é", "e\u0301", "NaN", "\u2029", "None"]


@pytest.fixture(scope="module")
def snapshot(finished):
    return publish_snapshot(finished.store, "small", finished.refs, {})


@pytest.fixture(scope="module")
def published(finished, snapshot):
    return open_recommender(finished.store, snapshot)


@pytest.fixture(scope="module")
def odd(tmp_path_factory, driver, quick):
    """A recommender of users and items whose identifiers are anything but words."""
    directory = tmp_path_factory.mktemp("odd")
    items = [item for item in ODD_ITEMS if item.strip()]
    rows = [
        {"user_id": user, "item_id": items[(place * 3 + step) % len(items)], "timestamp": float(step)}
        for place, user in enumerate(ODD_USERS)
        for step in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), directory / "odd.parquet")
    store = Store.open(directory / "store")
    settings = quick({"variants": ("base",), "ingest.format": "parquet"})
    results = driver.run(settings, directory / "odd.parquet", store)
    snapshot = publish_snapshot(store, "odd", {name: result.ref for name, result in results.items()}, {})
    return open_recommender(store, snapshot)


def table(published, users, n=5, **options) -> pa.Table:
    return pa.concat_tables(list(recommend(published, users, n, threads=1, **options)))


def own_items(rows) -> dict[str, list[str]]:
    return {user: items for user, *items in rows}


def sequences_of(published) -> list[list[str]]:
    ids = published.item_ids.to_pylist()
    items = [ids[item - 1] for item in published.history.items]
    return [items[start:end] for start, end in itertools.pairwise(published.history.offsets)]


def test_the_best_variant_is_taken_and_the_evaluation_of_this_model_found(finished, snapshot, published):
    assert published.slot == "recommender.sasrec.p2rec"
    fitted = finished.results["evaluation.sasrec.p2rec"].info["repeat_bias"][0]
    assert published.repeat_bias == (fitted["last"], fitted["earlier"])
    without = publish_snapshot(
        finished.store, "two", {name: ref for name, ref in finished.refs.items() if "p2rec" not in name}, {}
    )
    assert open_recommender(finished.store, without).slot == "recommender.sasrec.ci"
    assert open_recommender(finished.store, without, "backbone").repeat_bias is None
    for slot, said in (("recommender.sasrec.p2rec", "has no slot"), ("knowledge", "no sequential recommender")):
        with pytest.raises(SettingsError, match=said):
            open_recommender(finished.store, without, slot)
    only = publish_snapshot(finished.store, "three", {"ingest": finished.refs["ingest"]}, {})
    with pytest.raises(SettingsError, match="has no recommender"):
        open_recommender(finished.store, only)


def test_everything_known_of_a_user_counts_and_is_left_out(published, rows):
    own = own_items(rows)
    ids = published.item_ids.to_pylist()
    assert dict(zip(published.user_ids.to_pylist(), sequences_of(published), strict=True)) == own
    found = table(published, known_users(published), n=1000)
    assert found.schema == COLUMNS
    for user, items in own.items():
        of_user = found.filter(pc.equal(found["user_id"], user))
        assert set(of_user["item_id"].to_pylist()) == set(ids) - set(items)
        assert of_user["rank"].to_pylist() == list(range(1, of_user.num_rows + 1))
        scores = of_user["score"].to_pylist()
        assert scores == sorted(scores, reverse=True)
    assert set(found["source"].to_pylist()) == {"model"}
    kept = table(published, known_users(published), n=1000, seen="keep")
    assert kept.num_rows == len(own) * len(ids)
    assert table(published, known_users(published), n=1000, seen="weigh").num_rows == kept.num_rows


def test_weighing_needs_the_evaluation_of_the_model(finished, snapshot):
    backbone = open_recommender(finished.store, snapshot, "backbone")
    assert backbone.repeat_bias is None
    with pytest.raises(SettingsError, match="no evaluation of slot 'backbone'"):
        next(recommend(backbone, known_users(backbone), 3, seen="weigh"))


def test_users_of_a_file_come_in_its_order(published, tmp_path):
    everyone = table(published, known_users(published))
    chosen = published.user_ids.to_pylist()[7:2:-1]
    (tmp_path / "users.txt").write_bytes("\ufeff".encode() + "\r\n\n".join([*chosen, ""]).encode())
    users = known_users(published, tmp_path / "users.txt")
    found = table(published, users)
    assert list(dict.fromkeys(found["user_id"].to_pylist())) == chosen
    for user in chosen:
        same = pc.equal(everyone["user_id"], user)
        own = found.filter(pc.equal(found["user_id"], user))
        assert own["item_id"].equals(everyone.filter(same)["item_id"])


def test_sequences_of_a_file_are_what_is_known_of_a_user(published, rows, tmp_path):
    lines = [{"user_id": user, "items": items, "note": 1} for user, *items in rows]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = given_users(published, tmp_path / "s.jsonl")
    by_sequence, by_user = table(published, given), table(published, known_users(published))
    order = [("user_id", "ascending"), ("rank", "ascending")]
    left, right = by_sequence.sort_by(order), by_user.sort_by(order)
    assert left["item_id"].equals(right["item_id"])
    assert np.allclose(left["score"], right["score"], atol=1e-5)


def test_a_user_without_any_known_item_gets_what_is_popular(published, rows, tmp_path):
    lines = [{"user_id": "new", "items": []}, {"user_id": "strange", "items": ["?", "!"]}]
    lines.append({"user_id": "old", "items": ["?", rows[0][1]]})
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = given_users(published, tmp_path / "s.jsonl", Unknown.SKIP)
    assert given.n_skipped == 3
    found = table(published, given, n=3)
    assert found["source"].to_pylist() == ["popularity"] * 6 + ["model"] * 3
    counts: dict[str, int] = {}
    for _, *items in rows:
        for item in items:
            counts[item] = counts.get(item, 0) + 1
    assert found["score"].to_pylist()[:3] == sorted(counts.values(), reverse=True)[:3]
    assert [counts[item] for item in found["item_id"].to_pylist()[:3]] == found["score"].to_pylist()[:3]
    assert found["item_id"].to_pylist()[:3] == found["item_id"].to_pylist()[3:6]


def test_only_allowed_items_are_recommended(published, tmp_path):
    allowed = sorted(published.item_idx)[:3]
    (tmp_path / "items.txt").write_text("\n".join(allowed))
    mask, n_skipped = allowed_items(published, tmp_path / "items.txt")
    assert (mask.sum(), n_skipped) == (3, 0)
    found = table(published, known_users(published), allowed=mask)
    assert set(found["item_id"].to_pylist()) <= set(allowed)
    (tmp_path / "items.txt").write_text("?\n")
    with pytest.raises(DataError, match="no item of the dataset"):
        allowed_items(published, tmp_path / "items.txt", Unknown.SKIP)


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (known_users, "{user}\n\nnobody\n", r"line 3: there is no user 'nobody' in 'small'"),
        (known_users, "{user}\n{user}\n", r"line 2: the user .* is in line 1 already"),
        (allowed_items, "{item}\nnothing", r"line 2: there is no item 'nothing'"),
        (given_users, '{{"user_id": "u", "items": ["{item}", "x"]}}', r"line 1: there is no item 'x'"),
        (given_users, '{{"user_id": "u", "items": []}}\n{{"user_id": "u", "items": []}}', "line 2: .* in line 1"),
        (given_users, '{{"user_id": "u", "items": "{item}"}}', "items is not a list of texts"),
        (given_users, '{{"user_id": 7, "items": []}}', "user_id is not text"),
        (given_users, '{{"user_id": "u"}}', "it lacks 'items'"),
        (given_users, '{{"user_id": "\\ud800", "items": []}}', "line 1.*surrogates"),
        (given_users, "\n[]", "line 2"),
        (given_users, "{{", "line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(published, tmp_path, read, text, said):
    path = tmp_path / "file"
    path.write_text(text.format(user=published.user_ids[0].as_py(), item=published.item_ids[0].as_py()))
    with pytest.raises(DataError, match=said) as caught:
        read(published, path)
    assert str(path) in caught.value.problem


def test_files_that_cannot_be_read(published, tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe4\n")
    for path in (tmp_path / "none", tmp_path, tmp_path / "latin"):
        for read in (known_users, given_users, allowed_items):
            with pytest.raises(DataError, match="cannot be read"):
                read(published, path)


def test_odd_identifiers_go_round(odd, tmp_path):
    assert set(odd.user_ids.to_pylist()) == set(ODD_USERS)
    (tmp_path / "users").write_text("\n".join(ODD_USERS), encoding="utf-8", newline="")
    n_rows = write_table(
        tmp_path / "r.parquet", COLUMNS, recommend(odd, known_users(odd, tmp_path / "users"), 2, seen="keep"), {}
    )
    found = pq.read_table(tmp_path / "r.parquet")
    assert found.num_rows == n_rows == 2 * len(ODD_USERS)
    assert found["user_id"].to_pylist()[::2] == ODD_USERS
    items = odd.item_ids.to_pylist()
    assert set(found["item_id"].to_pylist()) <= set(items) <= set(ODD_ITEMS)
    (tmp_path / "items").write_text("\n".join(items), encoding="utf-8", newline="")
    assert allowed_items(odd, tmp_path / "items")[0].all()
    export_model(odd, tmp_path / "model")
    assert Recommender.load(tmp_path / "model").item_ids == tuple(items)


def test_the_file_says_what_it_was_made_of(published, snapshot, tmp_path):
    path = tmp_path / "new" / "r.parquet"
    facts = published.facts() | {"settings": {"n": 5}}
    assert write_table(path, COLUMNS, recommend(published, known_users(published), 5), facts) > 0
    metadata = json.loads(pq.read_metadata(path).metadata[METADATA])
    assert metadata == facts
    assert metadata["snapshot"] == snapshot.number
    assert metadata["artefact"].endswith(published.model.key)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        assert file.schema_arrow.equals(COLUMNS)
        assert file.read().num_rows == file.metadata.num_rows
    again = tmp_path / "again.parquet"
    write_table(again, COLUMNS, recommend(published, known_users(published), 5), facts)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError("no", remedy="none")])
def test_an_interrupted_write_leaves_what_was_there(published, tmp_path, error):
    def parts():
        yield next(recommend(published, known_users(published), 5))
        raise error

    path = tmp_path / "r.parquet"
    write_table(tmp_path / "other.parquet", COLUMNS, [], {})
    old = (tmp_path / "other.parquet").read_bytes()
    (tmp_path / "other.parquet").unlink()
    for before in (None, old):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            write_table(path, COLUMNS, parts(), {})
        assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_file_that_p2rec_did_not_write_is_never_replaced(tmp_path):
    rows = pa.table({"a": ['x,"y"', "z"], "b": pa.array([0.1, 2.0], pa.float32())})
    mine = {"csv": b"a,b\n1,2\n", "own.csv": b"visitor,sku\nu,i\n", "torn.parquet": b"PAR1 and no more"}
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(rows, tmp_path / "own.parquet")
    (tmp_path / "a.csv").write_bytes(mine["csv"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("own.csv", "torn.parquet", "own.parquet", "a.csv"):
        with pytest.raises(
            OutputNotWritten, match=rf"{name} is there already, and P2Rec did not write it\. Name another"
        ):
            write_table(tmp_path / name, rows.schema, [rows], {})
    for name in ("csv", "r.txt", "r"):
        with pytest.raises(SettingsError, match=r"not clear from its suffix .* one of these: \.parquet, \.csv\."):
            write_table(tmp_path / name, rows.schema, [rows], {})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_p2rec_wrote_is_replaced_and_csv_is_csv(tmp_path):
    rows = pa.table({"a": ['x,"y"\n', "z"], "b": pa.array([0.1, 2.0], pa.float32())})
    for name in ("r.csv", "R.CSV", "r.parquet"):
        (tmp_path / name).touch()
        assert write_table(tmp_path / name, rows.schema, [rows], {}) == 2
        assert write_table(tmp_path / name, rows.schema, [rows[:1], rows[1:], rows], {"n": 1}) == 4
    with (tmp_path / "r.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], *[['x,"y"\n', "0.1"], ["z", "2"]] * 2]
    lists = pa.schema([("item_id", pa.string()), ("embedding", pa.list_(pa.float32(), 2))])
    with pytest.raises(SettingsError, match=r"suffix '\.csv'\. Give it one of these: \.parquet\."):
        write_table(tmp_path / "e.csv", lists, [], {})


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path, tmp_path / "file" / "below.csv"):
        with pytest.raises(OutputNotWritten):
            write_table(target, COLUMNS, [], {})
    for target in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputNotWritten):
            write_directory(target, {"a": b"b"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    write_directory(tmp_path / "empty", {"a": b"b"})
    assert (tmp_path / "empty" / "a").read_bytes() == b"b"


def test_a_damaged_artefact_is_not_used(copied):
    snapshot = publish_snapshot(copied.store, "small", copied.refs, {})
    for slot, file, use in (
        ("recommender.sasrec.p2rec", "model.safetensors", lambda: open_recommender(copied.store, snapshot)),
        ("knowledge", "item_knowledge.parquet", lambda: item_vectors(copied.store, snapshot, "knowledge")),
        ("ingest", "users.parquet", lambda: open_recommender(copied.store, snapshot, "backbone")),
    ):
        path = copied.store.load(copied.refs[slot]).path / file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArtefactDamaged, match=file):
            use()


def test_embeddings_go_out_with_their_identifiers(finished, snapshot, published, tmp_path):
    found = item_vectors(finished.store, snapshot, "knowledge")
    stored = finished.store.load(finished.refs["knowledge"]).table("item_knowledge")
    expected = vectors(stored, "knowledge")
    assert np.array_equal(found.vectors, expected)
    ids = published.item_ids.to_pylist()

    assert export_parquet(found, tmp_path / "k.parquet") == len(ids)
    written = pq.read_table(tmp_path / "k.parquet")
    assert written["item_id"].to_pylist() == ids
    assert np.array_equal(vectors(written, "embedding"), expected)
    assert json.loads(written.schema.metadata[METADATA])["column"] == "item_knowledge.knowledge"

    assert export_npy(found, tmp_path / "k") == len(ids)
    assert np.array_equal(np.load(tmp_path / "k" / "embeddings.npy", allow_pickle=False), expected)
    assert (tmp_path / "k" / "ids.txt").read_text().split("\n") == [*ids, ""]
    with pytest.raises(SettingsError, match="no embeddings of items"):
        item_vectors(finished.store, snapshot, "clusters")


def test_neighbours_are_never_the_item_itself(finished, snapshot):
    found = item_vectors(finished.store, snapshot, "backbone")
    n_items = len(found.item_ids)
    every = pa.concat_tables(list(neighbours(found, n_items)))
    assert every.num_rows == n_items * (n_items - 1)
    assert not pc.any(pc.equal(every["item_id"], every["neighbour_id"])).as_py()
    place = item_place(found, found.item_ids[4].as_py())
    assert place == 4
    [one] = neighbours(found, 3, rows=np.array([place]))
    expected = every.filter(pc.equal(every["item_id"], found.item_ids[4])).slice(0, 3)
    assert one["neighbour_id"].to_pylist() == expected["neighbour_id"].to_pylist()
    assert np.allclose(one["similarity"], expected["similarity"], atol=1e-6)
    with pytest.raises(DataError, match="There is no item 'nothing'"):
        item_place(found, "nothing")
    found.vectors[4] = 0
    with pytest.raises(DataError, match="is zero"):
        item_place(found, found.item_ids[4].as_py())


PROGRAM = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"prefect", "duckdb", "pyarrow", "storage", "tasks", "flows", "deployments"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
import torch
from p2rec_core.inference import Recommender

torch.set_num_threads(1)
asked = json.load(sys.stdin)
answers = Recommender.load(sys.argv[1]).recommend(asked["sequences"], **asked["options"])
print(json.dumps([[[*item] for item in of_user] for of_user in answers]))
"""


@pytest.mark.parametrize("seen", ["mask", "weigh", "keep"])
def test_another_program_recommends_the_same_from_the_exported_model(published, tmp_path, seen):
    assert export_model(published, tmp_path / "model") == len(published.item_ids)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "ids.txt",
        "model.safetensors",
    ]
    call = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model")],
        input=json.dumps({"sequences": sequences_of(published), "options": {"n": 7, "seen": seen}}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert call.returncode == 0, call.stderr
    expected = table(published, known_users(published), n=7, seen=seen)
    found = [item for of_user in json.loads(call.stdout) for item in of_user]
    assert [item[0] for item in found] == expected["item_id"].to_pylist()
    assert [item[1] for item in found] == expected["score"].to_pylist()
    assert [item[2] for item in found] == expected["source"].to_pylist()


def test_a_loaded_model_answers_as_the_command_does(published, tmp_path):
    export_model(published, tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model")
    items = published.item_ids.to_pylist()
    [of_nobody, of_strange] = loaded.recommend([[], ["?"]], 2, skip_unknown=True, items=[items[3], "?"])
    assert of_nobody == of_strange == [(items[3], published.item_counts[3], "popularity")]
    assert loaded.recommend([]) == []
    with pytest.raises(DataError, match=r"Sequence 1 holds the item '\?'"):
        loaded.recommend([[], ["?"]])
    with pytest.raises(SettingsError, match="n = 0"):
        loaded.recommend([[]], 0)


@pytest.mark.parametrize("name", ["config.json", "ids.txt", "model.safetensors"])
def test_a_damaged_model_is_not_loaded(published, tmp_path, name):
    export_model(published, tmp_path / "model")
    path = tmp_path / "model" / name
    whole = path.read_bytes()
    for damaged in (whole[:-1] + b"x", whole[: len(whole) // 2], whole.replace(b'"last": ', b'"last": 1')):
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=name):
            Recommender.load(tmp_path / "model")
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        Recommender.load(tmp_path / "model")
