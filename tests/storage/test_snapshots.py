import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, SnapshotOvertaken, StoreError
from storage import snapshot_files
from storage.artefacts import ArtefactRef, Store
from storage.manifest import digest_of, render_json
from storage.snapshot_changes import ClusterChange, EmbeddingChange, IdChange, MetricChange, snapshot_changes
from storage.snapshots import (
    Snapshot,
    list_snapshots,
    pin,
    pinned,
    promote,
    publish_snapshot,
    read_snapshot,
    refusal_of,
    rollback,
    unpin,
)


@pytest.fixture
def refs(publish: Any) -> list[ArtefactRef]:
    return [publish("s", {}, key=f"k{i}").ref() for i in range(3)]


@pytest.fixture
def two(store: Store, refs: list[ArtefactRef]) -> Path:
    """A dataset with two snapshots; its directory."""
    publish_snapshot(store, "tiny", {"ingest": refs[0]}, {"gate": "held"})
    publish_snapshot(store, "tiny", {"ingest": refs[1], "recommender.sasrec.p2rec": refs[2]}, {})
    return store.root / "snapshots" / "tiny"


def test_snapshots_are_numbered_and_the_last_is_current(store: Store, refs: list[ArtefactRef], two: Path) -> None:
    current = read_snapshot(store, "tiny")
    assert current.number == 2
    assert current.entries == {"ingest": refs[1], "recommender.sasrec.p2rec": refs[2]}
    assert current.notes == ()
    first = read_snapshot(store, "tiny", 1)
    assert first.entries == {"ingest": refs[0]}
    assert first.info == {"gate": "held"}
    assert list_snapshots(store, "tiny") == [first, current]
    assert sorted(p.name for p in two.iterdir()) == ["000001.json", "000002.json", "current.json"]


def test_unchanged_entries_make_no_new_number_and_old_ones_do(store: Store, refs: list[ArtefactRef], two: Path) -> None:
    current = read_snapshot(store, "tiny")
    assert publish_snapshot(store, "tiny", dict(reversed(current.entries.items())), {"other": 1}) == current
    assert publish_snapshot(store, "tiny", {"ingest": refs[0]}, {}).number == 3


def test_what_was_to_replace_a_snapshot_does_not_replace_another(
    store: Store, refs: list[ArtefactRef], two: Path
) -> None:
    """Found by two refreshes at once: the later published over the one that it did not know of."""
    with pytest.raises(SnapshotOvertaken, match="Snapshot 2 of 'tiny' became the current one while snapshot 1 was"):
        publish_snapshot(store, "tiny", {"ingest": refs[2]}, {}, base=1)
    assert len(list_snapshots(store, "tiny")) == 2
    current = read_snapshot(store, "tiny")
    assert publish_snapshot(store, "tiny", current.entries, {}, base=1) == current  # both made the same
    assert publish_snapshot(store, "tiny", {"ingest": refs[2]}, {}, refused=["worse"], base=1).number == 3
    assert read_snapshot(store, "tiny") == current
    assert publish_snapshot(store, "tiny", {"ingest": refs[2]}, {}, base=2).number == 4
    assert read_snapshot(store, "tiny").number == 4


def test_what_is_not_there_is_named_with_what_is(store: Store, two: Path) -> None:
    with pytest.raises(
        StoreError,
        match=r"no snapshot of 'beauty' in .* \(it has: tiny\)\. Make one with `p2rec run --dataset beauty`",
    ):
        read_snapshot(store, "beauty")
    with pytest.raises(StoreError, match=r"There is no snapshot 7 of 'tiny'\. Choose one that exists: 1, 2"):
        read_snapshot(store, "tiny", 7)
    with pytest.raises(StoreError, match="no snapshot of 'beauty'"):
        read_snapshot(store, "beauty", 1)
    assert list_snapshots(store, "beauty") == []
    with pytest.raises(StoreError, match=r"no snapshot of 'tinny' in .* \(did you mean tiny\? it has: tiny\)"):
        read_snapshot(store, "tinny")


def test_only_artefacts_that_exist_make_a_snapshot(store: Store, refs: list[ArtefactRef]) -> None:
    with pytest.raises(ArtefactMissing, match="There is no artefact s/k9"):
        publish_snapshot(store, "tiny", {"ingest": dataclasses.replace(refs[0], key="k9")}, {})
    with pytest.raises(StoreError, match=r"'\.\./x' cannot be used as a slot"):
        publish_snapshot(store, "tiny", {"../x": refs[0]}, {})
    with pytest.raises(StoreError, match="A snapshot of 'tiny' needs artefacts"):
        publish_snapshot(store, "tiny", {}, {})
    assert not (store.root / "snapshots" / "tiny").exists()


@pytest.mark.parametrize("dataset", ["", "..", "a/b", "Tiny", "a\0", "x" * 65])
def test_hostile_dataset_names_are_refused(store: Store, refs: list[ArtefactRef], dataset: str) -> None:
    for attempt in (
        lambda: read_snapshot(store, dataset),
        lambda: list_snapshots(store, dataset),
        lambda: publish_snapshot(store, dataset, {"ingest": refs[0]}, {}),
        lambda: promote(store, dataset, 1),
        lambda: rollback(store, dataset),
        lambda: pin(store, dataset, 1),
        lambda: unpin(store, dataset, 1),
    ):
        with pytest.raises(StoreError, match="cannot be used as a dataset"):
            attempt()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "damaged"),
        ("\0" * 40, "damaged"),
        ('{"number": 2', "damaged"),
        ('{\n  "format_version": 1,\n  "number": "2"\n}\n', "it points to '2'"),
        ('{\n  "digest": "x",\n  "format_version": 1,\n  "number": 1\n}\n', "it expects digest 'x', found"),
        ('{\n  "digest": "x",\n  "format_version": 1,\n  "number": 9\n}\n', "is missing"),
        (None, "is missing"),
    ],
)
def test_a_torn_pointer_is_passed_over_with_a_note_and_repaired_by_the_next_publish(
    store: Store, two: Path, content: str | None, problem: str
) -> None:
    pointer = two / "current.json"
    good = pointer.read_bytes()
    pointer.unlink()
    if content is not None:
        pointer.write_text(content)
    snapshot = read_snapshot(store, "tiny")
    assert snapshot.number == 2
    assert problem in snapshot.notes[0]
    assert snapshot.notes[0].endswith("using the last complete snapshot, 2, instead.")
    assert publish_snapshot(store, "tiny", snapshot.entries, {}).number == 2
    assert pointer.read_bytes() == good
    assert read_snapshot(store, "tiny").notes == ()


def test_every_flipped_bit_of_a_snapshot_is_seen(store: Store, two: Path) -> None:
    newest = two / "000002.json"
    good = newest.read_bytes()
    for position in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        newest.write_bytes(flipped)
        snapshot = read_snapshot(store, "tiny")
        assert snapshot.number == 1
        assert "damaged" in snapshot.notes[0]
        with pytest.raises(StoreError, match=r"000002\.json is damaged: .* Choose another snapshot"):
            read_snapshot(store, "tiny", 2)


def test_with_nothing_readable_the_reader_is_told_and_the_next_publish_goes_on(
    store: Store, refs: list[ArtefactRef], two: Path
) -> None:
    for path in two.iterdir():
        path.write_text("torn")
    with pytest.raises(StoreError, match=r"No snapshot of 'tiny' is readable: .* `p2rec run --dataset tiny`"):
        read_snapshot(store, "tiny")
    assert publish_snapshot(store, "tiny", {"ingest": refs[0]}, {}).number == 3
    assert read_snapshot(store, "tiny").number == 3


def test_a_snapshot_of_a_newer_format_is_not_called_damaged(store: Store, two: Path) -> None:
    fields = json.loads((two / "000002.json").read_text()) | {"format_version": 2}
    (two / "000002.json").write_bytes(render_json(fields | {"digest": digest_of(fields)}))
    with pytest.raises(StoreError, match=r"000002\.json has format version 2; this P2Rec reads up to 1"):
        read_snapshot(store, "tiny")


@pytest.mark.parametrize("name", ["current.json", "000002.json"])
def test_a_version_that_a_flipped_bit_made_is_damage(store: Store, two: Path, name: str) -> None:
    path = two / name
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 3'))
    found = read_snapshot(store, "tiny")
    assert found.number == (2 if name == "current.json" else 1)
    assert "is damaged" in found.notes[0]


@pytest.fixture
def three(store: Store, refs: list[ArtefactRef], two: Path) -> Path:
    """The dataset with a third snapshot."""
    publish_snapshot(store, "tiny", {"ingest": refs[2]}, {})
    return two


def test_promote_changes_the_pointer_and_nothing_else(store: Store, three: Path) -> None:
    before = {path.name: path.read_bytes() for path in three.glob("0*.json")}
    assert promote(store, "tiny", 1) == read_snapshot(store, "tiny")
    assert read_snapshot(store, "tiny").number == 1
    assert promote(store, "tiny", 3).number == read_snapshot(store, "tiny").number == 3
    assert {path.name: path.read_bytes() for path in three.glob("0*.json")} == before
    with pytest.raises(StoreError, match=r"no snapshot 4 of 'tiny'\. Choose one that exists: 1, 2, 3"):
        promote(store, "tiny", 4)
    assert read_snapshot(store, "tiny").number == 3


def test_a_snapshot_that_lacks_an_artefact_is_not_promoted(store: Store, refs: list[ArtefactRef], three: Path) -> None:
    shutil.rmtree(store.place("s", "k1"))
    with pytest.raises(ArtefactMissing, match=r"Snapshot 2 of 'tiny' is not complete, slot ingest: .* artefact s/k1"):
        promote(store, "tiny", 2)
    (store.place("s", "k0") / "manifest.json").write_text("torn")
    with pytest.raises(ArtefactDamaged, match=r"Snapshot 1 of 'tiny' is not complete, slot ingest: .* is damaged"):
        promote(store, "tiny", 1)
    assert read_snapshot(store, "tiny").number == 3


def test_rollback_goes_back_one_by_one_until_there_is_nothing_before(store: Store, three: Path) -> None:
    assert [rollback(store, "tiny").number for _ in range(2)] == [2, 1]
    with pytest.raises(
        StoreError,
        match=r"no complete snapshot of 'tiny' before the current one, 1\. .*`p2rec snapshots --dataset tiny`",
    ):
        rollback(store, "tiny")
    assert read_snapshot(store, "tiny").number == 1
    with pytest.raises(StoreError, match="no snapshot of 'beauty'"):
        rollback(store, "beauty")


def test_rollback_passes_over_what_is_not_complete_and_says_so(
    store: Store, refs: list[ArtefactRef], three: Path
) -> None:
    publish_snapshot(store, "tiny", {"ingest": refs[0]}, {})
    shutil.rmtree(store.place("s", "k2"))  # of snapshots 2 and 3
    back = rollback(store, "tiny")
    assert back.number == 1
    assert ["Snapshot 3" in back.notes[0], "Snapshot 2" in back.notes[1]] == [True, True]
    assert read_snapshot(store, "tiny") == dataclasses.replace(back, notes=())
    promote(store, "tiny", 4)
    (three / "000001.json").write_text("torn")
    with pytest.raises(StoreError, match=r"before the current one, 4\. .*000001\.json is damaged"):
        rollback(store, "tiny")


def test_a_publish_after_a_rollback_takes_a_new_number(store: Store, refs: list[ArtefactRef], three: Path) -> None:
    rollback(store, "tiny")
    rollback(store, "tiny")
    assert publish_snapshot(store, "tiny", {"ingest": refs[0]}, {}).number == 1
    again = publish_snapshot(store, "tiny", {"ingest": refs[2]}, {})
    assert again.number == 4
    assert read_snapshot(store, "tiny") == again
    assert rollback(store, "tiny").number == 3


def test_pins_are_kept_and_taken_back(store: Store, three: Path) -> None:
    assert pinned(store, "tiny") == frozenset()
    assert pin(store, "tiny", 2) == {2}
    assert pin(store, "tiny", 1) == pin(store, "tiny", 2) == {1, 2}
    assert unpin(store, "tiny", 2) == pinned(store, "tiny") == {1}
    with pytest.raises(StoreError, match=r"Snapshot 2 of 'tiny' is not pinned\. Choose one that is: 1"):
        unpin(store, "tiny", 2)
    with pytest.raises(StoreError, match="There is no snapshot 9"):
        pin(store, "tiny", 9)
    assert read_snapshot(store, "tiny").number == 3
    pins = three / "pins.json"
    for content in ("", pins.read_text().replace("1\n", "2\n"), '{\n  "pinned": []\n}\n'):
        pins.write_text(content)
        with pytest.raises(StoreError, match=r"pins\.json is damaged: .* `p2rec pin N --dataset tiny`"):
            pinned(store, "tiny")


RUN = {"method": "sasrec", "variant": "p2rec", "split": "test", "seen": "keep"}


def metrics(**values: float) -> pa.Table:
    rows = [{**RUN, "metric": name, "k": 10, "value": value, "n_users": 2} for name, value in values.items()]
    return pa.Table.from_pylist(rows).cast(
        pa.schema(
            [(name, pa.string()) for name in (*RUN, "metric")]
            + [("k", pa.int32()), ("value", pa.float64()), ("n_users", pa.int32())]
        )
    )


def knowledge(item_idx: list[int], *rows: list[float]) -> pa.Table:
    def vectors(values: list[list[float]]) -> pa.Array:
        flat = pa.array([value for row in values for value in row], pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, len(values[0]))

    return pa.table(
        {
            "item_idx": pa.array(item_idx, pa.int32()),
            "knowledge": vectors(list(rows)),
            "category_distribution": vectors([[1.0, 0.0]] * len(rows)),
        }
    )


def clusters(item_idx: list[int], cluster: list[int]) -> pa.Table:
    return pa.table(
        {
            "item_idx": pa.array(item_idx, pa.int32()),
            "cluster": pa.array(cluster, pa.int32()),
            "distance": pa.array([0.0] * len(cluster), pa.float32()),
        }
    )


def owners(users: list[str], items: list[str]) -> dict[str, pa.Table]:
    def numbered(idx: str, name: str, ids: list[str]) -> pa.Table:
        ints = pa.array(range(1, len(ids) + 1), pa.int32())
        return pa.table({idx: ints, name: ids, "n_train": ints})

    return {"users": numbered("user_idx", "user_id", users), "items": numbered("item_idx", "item_id", items)}


def test_changes_are_counted_by_the_owners_identifiers(store: Store, publish: Any) -> None:
    def snapshot(n: int, contents: dict[str, dict[str, pa.Table]]) -> Any:
        entries = {slot: publish(slot, tables, key=f"k{n}").ref() for slot, tables in contents.items()}
        return publish_snapshot(store, "tiny", entries, {})

    old = snapshot(
        1,
        {
            "ingest": owners(["u1", "u2"], ["a", "b", "c", "d"]),
            "clusters": {"item_clusters": clusters([1, 2, 3, 4], [0, 0, 1, 1])},
            "knowledge": {"item_knowledge": knowledge([1, 2, 3, 4], [1, 0], [0, 2], [0, 0], [1, 1])},
            "evaluation.sasrec.p2rec": {"metrics": metrics(NDCG=0.25, HR=0.5)},
            "preferences": {},
        },
    )
    # d, c, b, new: the same items have other indices; c moved to the cluster of b, and all clusters were renumbered
    new = snapshot(
        2,
        {
            "ingest": owners(["u2", "u3", "u4"], ["d", "c", "b", "new"]),
            "clusters": {"item_clusters": clusters([1, 2, 3, 4], [0, 1, 1, 0])},
            "knowledge": {"item_knowledge": knowledge([1, 2, 3, 4], [2, 2], [1, 0], [1, 0], [1, 0])},
            "evaluation.sasrec.p2rec": {"metrics": metrics(NDCG=0.5, MRR=0.125)},
            "report": {},
        },
    )
    changes = snapshot_changes(store, old, new)
    assert (changes.old, changes.new) == (1, 2)
    assert {c.slot: (c.old is not None, c.new is not None) for c in changes.slots} == {
        **dict.fromkeys(("ingest", "clusters", "knowledge", "evaluation.sasrec.p2rec"), (True, True)),
        "preferences": (True, False),
        "report": (False, True),
    }
    assert set(changes.ids) == {IdChange("items", 4, 4, 1, 1), IdChange("users", 2, 3, 2, 1)}
    assert changes.clusters == (ClusterChange("clusters", 3, pytest.approx(2 / 3), pytest.approx(1 / 3)),)
    # b: orthogonal; c: zero before; d: the same direction
    assert changes.embeddings == (EmbeddingChange("knowledge", "item_knowledge", 2, 1, pytest.approx(0.5)),)
    side_by_side = {metric.metric: metric for metric in changes.metrics}
    evaluation = ("evaluation.sasrec.p2rec", "sasrec", "p2rec", "test", "keep")
    assert side_by_side == {
        "NDCG": MetricChange(*evaluation, "NDCG", 10, 0.25, 0.5),
        "HR": MetricChange(*evaluation, "HR", 10, 0.5, None),
        "MRR": MetricChange(*evaluation, "MRR", 10, None, 0.125),
    }
    assert changes.notes == ()
    assert snapshot_changes(store, new, new).slots == ()
    told = json.loads(json.dumps(changes.to_json()))
    assert told["slots"] == [
        {"slot": c.slot, "old": name(c.old), "new": name(c.new), "same_content": False} for c in changes.slots
    ]
    assert [(told["old"], told["new"]), told["notes"], told["clusters"][0]["slot"]] == [(1, 2), [], "clusters"]


def name(ref: ArtefactRef | None) -> str | None:
    return None if ref is None else f"{ref.stage}/{ref.key}"


def test_what_does_not_fit_is_said(store: Store, publish: Any, tables: SimpleNamespace) -> None:
    first = {
        "ingest": publish("ingest", owners(["u"], ["a", "b"]), key="k1").ref(),
        "knowledge": publish("knowledge", {"item_knowledge": knowledge([1], [1, 0])}, key="k1").ref(),
        "backbone": publish("backbone", {"item_embeddings": tables.item_embeddings}, key="k1").ref(),
        "clusters": publish("clusters", {"item_clusters": clusters([1], [0])}, key="k1").ref(),
    }
    other = tables.item_embeddings.set_column(1, "source", [["caser"] * 3])
    second = first | {
        "knowledge": publish("knowledge", {"item_knowledge": knowledge([1], [1, 0, 0])}, key="k2").ref(),
        "backbone": publish("backbone", {"item_embeddings": other}, key="k2").ref(),
        "clusters": publish(
            "clusters", {"item_clusters": clusters([2], [0]), "history": tables.history}, key="k2"
        ).ref(),
    }
    old, new = (publish_snapshot(store, "tiny", entries, {}) for entries in (first, second))
    changes = snapshot_changes(store, old, new)
    assert changes.embeddings == (EmbeddingChange("backbone", "item_embeddings", 0, 0, None),)
    assert changes.clusters == ()
    assert [note.split(" cannot be compared: ")[0] for note in changes.notes] == [
        "Table 'item_knowledge' of slot knowledge",
        "Table 'item_embeddings' of slot backbone",
        "Table 'item_clusters' of slot clusters",
    ]
    assert [note.split("cannot be compared: ")[1] for note in changes.notes] == [
        "column 'knowledge' is fixed_size_list<element: float>[2] in snapshot 1 and "
        "fixed_size_list<element: float>[3] in 2.",
        "the snapshots have no vectors of the same item and source.",
        "no item has a cluster in both snapshots.",
    ]
    without = publish_snapshot(store, "tiny", {slot: ref for slot, ref in first.items() if slot != "ingest"}, {})
    changes = snapshot_changes(store, without, new)
    assert sum("only be matched by the table 'items' of both" in note for note in changes.notes) == 2
    with_metrics = second | {"knowledge": publish("knowledge", {"metrics": metrics(HR=0.5)}, key="k3").ref()}
    notes = snapshot_changes(store, new, publish_snapshot(store, "tiny", with_metrics, {})).notes
    assert ["only snapshot 2 has it" in notes[0], "only snapshot 4 has it" in notes[1]] == [True, True]


def test_the_same_content_under_another_key_is_not_compared(store: Store, publish: Any) -> None:
    refs = [publish("evaluation", {"metrics": metrics(HR=0.5)}, key=key).ref() for key in ("k1", "k2")]
    old, new = (publish_snapshot(store, "tiny", {"evaluation": ref}, {}) for ref in refs)
    changes = snapshot_changes(store, old, new)
    assert [(change.slot, change.same_content) for change in changes.slots] == [("evaluation", True)]
    assert changes.metrics == ()
    shutil.rmtree(store.place("evaluation", "k2"))
    other = publish("evaluation", {"metrics": metrics(HR=0.75)}, key="k3").ref()
    newest = publish_snapshot(store, "tiny", {"evaluation": other}, {})
    with pytest.raises(ArtefactMissing, match="There is no artefact evaluation/k2"):
        snapshot_changes(store, new, newest)


def test_a_snapshot_that_is_forgotten_between_two_reads_is_not_missed(
    store: Store, refs: list[ArtefactRef], two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer is read, another snapshot becomes the current one, and garbage collection forgets the first."""
    real = snapshot_files.read_numbered
    calls = itertools.count()

    def read_numbered(directory: Path, dataset: str, number: int) -> Snapshot:
        if next(calls) == 0:
            promote(store, "tiny", 1)
            (two / "000002.json").unlink()
        return real(directory, dataset, number)

    monkeypatch.setattr(snapshot_files, "read_numbered", read_numbered)
    found = read_snapshot(store, "tiny")
    assert (found.number, found.notes) == (1, ())


def test_a_refused_snapshot_is_kept_and_passed_over(store: Store, refs: list[ArtefactRef], two: Path) -> None:
    kept = publish_snapshot(store, "tiny", {"ingest": refs[0]}, {"a": 1}, refused=["rows are lost"])
    assert (kept.number, refusal_of(kept)) == (3, ("rows are lost",))
    assert read_snapshot(store, "tiny").number == 2
    again = publish_snapshot(store, "tiny", {"ingest": refs[0]}, {"a": 1}, refused=["rows are lost"])
    assert again == kept
    good = publish_snapshot(store, "tiny", {"ingest": refs[2]}, {})
    assert (good.number, refusal_of(good)) == (4, ())
    back = rollback(store, "tiny")
    assert back.number == 2
    assert back.notes == ("Snapshot 3 of 'tiny' was refused when it was made.",)


def test_a_refused_snapshot_can_be_promoted_and_does_not_stand_in(
    store: Store, refs: list[ArtefactRef], two: Path
) -> None:
    publish_snapshot(store, "tiny", {"ingest": refs[0]}, {}, refused=["rows are lost"])
    (two / "current.json").write_text("{}")
    assert read_snapshot(store, "tiny").number == 2
    assert promote(store, "tiny", 3).number == 3
    assert read_snapshot(store, "tiny").number == 3


@pytest.mark.parametrize("change", [pin, promote, unpin])
def test_a_dataset_without_snapshots_is_named_with_those_that_have_some(
    store: Store, publish: Any, change: Callable[[Store, str, int], object]
) -> None:
    publish_snapshot(store, "tiny", {"slot": publish("s", {}, key="k1").ref()}, {})
    with pytest.raises(StoreError) as caught:
        change(store, "huge", 1)
    if change is unpin:
        assert caught.value.problem == "Snapshot 1 of 'huge' is not pinned."
        assert caught.value.remedy == "Choose one that is: none."
    else:
        assert caught.value.problem == f"There is no snapshot of 'huge' in {store.root} (it has: tiny)."
        assert caught.value.remedy == "Make one with `p2rec run --dataset huge`."
