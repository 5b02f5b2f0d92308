import dataclasses
from pathlib import Path
from typing import Any

import pytest

from p2rec_core.errors import ArtefactMissing, StoreError
from storage.artefacts import ArtefactRef, Store
from storage.snapshots import list_snapshots, publish_snapshot, read_snapshot


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
    pointer = two / "current.json"
    pointer.write_text(pointer.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(StoreError, match=r"current\.json has format version 2; this P2Rec reads up to 1"):
        read_snapshot(store, "tiny")
