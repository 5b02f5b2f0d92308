"""Snapshots in a bucket: in memory, in a directory and, where moto is installed, behind a real S3 interface."""

import datetime
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from p2rec_core.errors import ArtefactDamaged, P2RecError, StoreError
from storage.artefacts import Store
from storage.doctor import examine
from storage.remote.bucket import Bucket
from storage.remote.pull import pull
from storage.remote.push import forget, push
from storage.snapshots import list_snapshots, pin, publish_snapshot, read_snapshot, rollback
from tests.faults.house import DATASET, publish, publish_artefact

NONE = datetime.timedelta(0)


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[], str]]:
    """Addresses of new buckets of a server on this machine."""
    server_of = pytest.importorskip("moto.server", reason="moto is not installed: requirements-s3.txt")
    boto3 = pytest.importorskip("boto3")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        made = 0

        def new() -> str:
            nonlocal made
            made += 1
            client.create_bucket(Bucket=f"bucket-{made}")
            return f"s3://bucket-{made}/some/prefix"

        yield new
    server.stop()


@pytest.fixture(params=["memory", "directory", pytest.param("s3", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    match request.param:
        case "memory":
            return Bucket(MemoryStore(), "memory")
        case "directory":
            return Bucket.open(f"file://{tmp_path}/bucket", create=True)
        case _:
            return Bucket.open(request.getfixturevalue("s3")())


def filled(root: Path, *values: int) -> Store:
    store = Store.open(root)
    for value in values:
        publish(store, value)
    return store


def current_value(store: Store) -> float:
    """What the current snapshot of a whole store holds, read from all of its files."""
    snapshot = read_snapshot(store, DATASET)
    artefact = store.load(snapshot.entries["train"])
    store.verify(artefact)
    values = {float(artefact.json("report")["value"]), float(artefact.tensors("weights")["w"][0])}
    values.add(float(artefact.table("history")["value"][0].as_py()))
    assert not examine(store).harm
    assert len(values) == 1
    return values.pop()


class CutError(Exception):
    """The line is cut."""


class Breaking(Bucket):
    """A bucket that fails at the n-th call that changes it, or that reads a block of it."""

    def __init__(self, bucket: Bucket, left: int) -> None:
        super().__init__(bucket._objects, bucket.address)
        self.left = left

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutError

    def write(self, name: str, source: "Path | bytes") -> None:
        self._count()
        super().write(name, source)

    def create(self, name: str, data: bytes) -> bool:
        self._count()
        return super().create(name, data)

    def swap(self, name: str, data: bytes, mark: Any) -> bool:
        self._count()
        return super().swap(name, data, mark)

    def blocks(self, name: str) -> Iterator[bytes]:
        self._count()
        yield from super().blocks(name)
        self._count()


def put(bucket: Bucket, name: str, data: bytes) -> None:
    obstore.put(bucket._objects, name, data)


def test_what_is_pushed_is_pulled(tmp_path: Path, bucket: Bucket) -> None:
    store, copy = filled(tmp_path / "store", 1, 2), Store.open(tmp_path / "copy")
    told = []
    sent = push(store, bucket, DATASET, told=lambda *step: told.append(step))
    assert (sent.snapshot.number, sent.n_sent, sent.n_there, sent.before) == (2, 1, 0, None)
    assert told == [(1, 1, "train/v2")]
    fetched = pull(copy, bucket, DATASET)
    assert (fetched.snapshot.number, fetched.n_fetched, fetched.n_bytes) == (2, 1, sent.n_bytes)
    assert fetched.snapshot == read_snapshot(copy, DATASET) == read_snapshot(store, DATASET)
    assert current_value(copy) == 2
    again, there = push(store, bucket, DATASET), pull(copy, bucket, DATASET)
    assert (again.n_sent, again.n_there, again.n_bytes, again.before) == (0, 1, 0, 2)
    assert (there.n_fetched, there.n_there, there.n_bytes) == (0, 1, 0)


def test_a_rollback_is_pushed_too(tmp_path: Path, bucket: Bucket) -> None:
    store, copy = filled(tmp_path / "store", 1), Store.open(tmp_path / "copy")
    for value in (2, 3):
        push(store, bucket, DATASET)
        publish(store, value)
    push(store, bucket, DATASET)
    pull(copy, bucket, DATASET)
    rollback(store, DATASET)
    assert push(store, bucket, DATASET).before == 3
    assert pull(copy, bucket, DATASET).snapshot.number == 2
    assert current_value(copy) == 2
    assert [snapshot.number for snapshot in list_snapshots(copy, DATASET)] == [2, 3]


def test_a_push_that_is_broken_off_anywhere_leaves_the_old_and_is_finished_by_the_next(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1)
    stops = 0
    while True:
        bucket = Bucket(MemoryStore(), "memory")
        shutil.rmtree(tmp_path / "store")
        store = filled(tmp_path / "store", 1)
        push(store, bucket, DATASET)
        publish(store, 2)
        try:
            push(store, Breaking(bucket, stops), DATASET)
        except CutError:
            pass
        else:
            break
        copy = Store.open(tmp_path / f"copy-{stops}")
        pull(copy, bucket, DATASET)
        assert current_value(copy) == 1
        push(store, bucket, DATASET)
        pull(copy, bucket, DATASET)
        assert current_value(copy) == 2
        stops += 1
    assert stops == 6  # three files, the manifest, the snapshot, the pointer


def test_a_pull_that_is_broken_off_anywhere_leaves_the_old_and_is_finished_by_the_next(tmp_path: Path) -> None:
    store, bucket = filled(tmp_path / "store", 1), Bucket(MemoryStore(), "memory")
    push(store, bucket, DATASET)
    old = Store.open(tmp_path / "old")
    pull(old, bucket, DATASET)
    publish(store, 2)
    push(store, bucket, DATASET)
    stops = 0
    while True:
        copy = Store.open(shutil.copytree(tmp_path / "old", tmp_path / f"copy-{stops}"))
        try:
            pull(copy, Breaking(bucket, stops), DATASET)
        except CutError:
            pass
        else:
            break
        assert current_value(copy) == 1
        assert not list(copy.staging.iterdir())
        pull(copy, bucket, DATASET)
        assert current_value(copy) == 2
        stops += 1
    assert stops == 6  # before and after each of three files


@pytest.mark.parametrize("change", ["flipped", "cut", "longer", "gone"])
def test_damage_in_a_bucket_is_found_before_it_is_taken_and_mended_by_a_checking_push(
    tmp_path: Path, bucket: Bucket, change: str
) -> None:
    store = filled(tmp_path / "store", 1)
    push(store, bucket, DATASET)
    names = [entry.name for entry in bucket.list("") if entry.name != "store.json"]
    assert len(names) == 6
    for number, name in enumerate(names):
        data = bytes(obstore.get(bucket._objects, name).bytes())
        match change:
            case "flipped":
                put(bucket, name, data[:7] + bytes([data[7] ^ 4]) + data[8:])
            case "cut":
                put(bucket, name, data[:-1])
            case "longer":
                put(bucket, name, data + b" ")
            case "gone":
                bucket.remove([name])
        copy = Store.open(tmp_path / f"copy-{number}")
        with pytest.raises(P2RecError) as caught:
            pull(copy, bucket, DATASET)
        assert bucket.address in caught.value.problem
        assert not list(copy.staging.iterdir())
        assert not list(copy.artefacts())
        push(store, bucket, DATASET, check=True)
        pull(copy, bucket, DATASET)
        assert current_value(copy) == 1


def test_damage_in_the_store_that_is_pulled_into_is_replaced(tmp_path: Path, bucket: Bucket) -> None:
    store, copy = filled(tmp_path / "store", 1), Store.open(tmp_path / "copy")
    push(store, bucket, DATASET)
    pull(copy, bucket, DATASET)
    (copy.place("train", "v1") / "report.json").write_bytes(b"{}\n")
    assert pull(copy, bucket, DATASET).n_fetched == 1
    assert current_value(copy) == 1


def test_damage_in_the_store_that_is_pushed_is_not_sent(tmp_path: Path, bucket: Bucket) -> None:
    store = filled(tmp_path / "store", 1)
    (store.place("train", "v1") / "report.json").write_bytes(b"{}\n")
    with pytest.raises(ArtefactDamaged, match=r"report\.json is damaged"):
        push(store, bucket, DATASET)
    with pytest.raises(StoreError, match="no current snapshot of 'tiny'"):
        pull(Store.open(tmp_path / "copy"), bucket, DATASET)


def test_histories_do_not_mix(tmp_path: Path, bucket: Bucket) -> None:
    store, other = filled(tmp_path / "store", 1), filled(tmp_path / "other", 5)
    push(store, bucket, DATASET)
    with pytest.raises(StoreError, match="holds a snapshot 1 of 'tiny' of another store"):
        push(other, bucket, DATASET)
    with pytest.raises(StoreError, match="has a snapshot 1 of 'tiny' of its own"):
        pull(other, bucket, DATASET)
    assert current_value(other) == 5


def test_other_content_under_a_key_goes_both_ways_beside_what_is_there(tmp_path: Path, bucket: Bucket) -> None:
    store, copy = filled(tmp_path / "store", 1), Store.open(tmp_path / "copy")
    push(store, bucket, DATASET)
    pull(copy, bucket, DATASET)
    forced = publish_artefact(store, 1, content=7)
    publish_snapshot(store, DATASET, {"train": forced.ref()}, {})
    assert push(store, bucket, DATASET).n_sent == 1
    assert pull(copy, bucket, DATASET).n_fetched == 1
    before = copy.load(read_snapshot(copy, DATASET, 1).entries["train"])
    assert (current_value(copy), copy.find("train", "v1")) == (7, before)
    assert push(store, bucket, DATASET, check=True).n_sent == pull(copy, bucket, DATASET).n_fetched == 0
    whole = Store.open(tmp_path / "whole")
    pull(whole, bucket, DATASET)  # at the key's own place, since nothing else has it
    assert (current_value(whole), whole.find("train", "v1").ref()) == (7, forced.ref())
    assert forget(bucket, DATASET, keep=2, grace=NONE) == ([], 0)
    publish(store, 2)
    push(store, bucket, DATASET)
    assert forget(bucket, DATASET, keep=1, grace=NONE) == ([1, 2], 2)


def test_a_variant_that_is_damaged_in_a_bucket_is_not_taken_and_sent_again(tmp_path: Path, bucket: Bucket) -> None:
    store = filled(tmp_path / "store", 1)
    push(store, bucket, DATASET)
    forced = publish_artefact(store, 1, content=7)
    publish_snapshot(store, DATASET, {"train": forced.ref()}, {})
    push(store, bucket, DATASET)
    place = f"artefacts/train/{forced.ref().variant}"
    for file in ("manifest.json", "report.json"):
        put(bucket, f"{place}/{file}", b"{}\n")
        copy = Store.open(tmp_path / f"copy-{file}")
        with pytest.raises(P2RecError, match=file):
            pull(copy, bucket, DATASET)
        assert push(store, bucket, DATASET, check=True).n_sent == 1
        pull(copy, bucket, DATASET)
        assert current_value(copy) == 7
    put(bucket, f"{place}/manifest.json", bucket.read("artefacts/train/v1/manifest.json") or b"")
    with pytest.raises(StoreError, match=rf"holds train/v1~[0-9a-f]+ in {place}, which is another's place"):
        push(store, bucket, DATASET)


def test_another_artefact_in_the_place_of_a_key_is_refused(tmp_path: Path, bucket: Bucket) -> None:
    store = filled(tmp_path / "store", 1)
    push(store, bucket, DATASET)
    publish(store, 3)
    put(bucket, "artefacts/train/v3/manifest.json", bucket.read("artefacts/train/v1/manifest.json") or b"")
    with pytest.raises(StoreError, match=r"holds train/v1~[0-9a-f]+ in artefacts/train/v3, which is another's place"):
        push(store, bucket, DATASET)


def test_of_two_that_push_at_once_one_is_told(tmp_path: Path, bucket: Bucket) -> None:
    store = filled(tmp_path / "store", 1)
    push(store, bucket, DATASET)
    second = Store.open(shutil.copytree(store.root, tmp_path / "second"))
    publish(store, 2)

    def meanwhile(*_: object) -> None:
        publish(second, 2)
        publish(second, 3)
        rollback(second, DATASET)
        publish(second, 4)
        push(second, bucket, DATASET)

    with pytest.raises(StoreError, match="Somebody else changed the current snapshot"):
        push(store, bucket, DATASET, told=meanwhile)
    copy = Store.open(tmp_path / "copy")
    pull(copy, bucket, DATASET)
    assert current_value(copy) == 4


def test_old_snapshots_are_forgotten_with_what_only_they_refer_to(tmp_path: Path, bucket: Bucket) -> None:
    store = Store.open(tmp_path / "store")
    for value in (1, 2, 3):
        publish(store, value)
        push(store, bucket, DATASET)
    other = filled(tmp_path / "other", 8)
    shutil.move(other.root / "snapshots" / DATASET, other.root / "snapshots" / "else")
    assert forget(bucket, DATASET, keep=2) == ([1], 0)  # what is young stays
    put(bucket, "artefacts/train/v9/report.json", b"{}\n")  # of a push that was broken off
    assert forget(bucket, DATASET, keep=2, grace=NONE) == ([], 2)
    rollback(store, DATASET)
    push(store, bucket, DATASET)
    publish(store, 4)
    assert forget(bucket, DATASET, keep=1, grace=NONE) == ([], 0)  # 3 is the newest, and 2 the current one
    push(store, bucket, DATASET)
    assert forget(bucket, DATASET, keep=1, grace=NONE) == ([2, 3], 2)
    assert {entry.name.split("/")[2] for entry in bucket.list("artefacts")} == {"v4"}
    copy = Store.open(tmp_path / "copy")
    pull(copy, bucket, DATASET)
    assert current_value(copy) == 4
    with pytest.raises(StoreError, match="0 snapshots cannot be kept"):
        forget(bucket, DATASET, keep=0)


def test_nothing_is_forgotten_where_a_snapshot_cannot_be_read(tmp_path: Path, bucket: Bucket) -> None:
    store = Store.open(tmp_path / "store")
    for value in (1, 2, 3):
        publish(store, value)
        push(store, bucket, DATASET)
    put(bucket, f"snapshots/{DATASET}/000002.json", b"{}\n")
    with pytest.raises(StoreError, match=r"000002\.json in .* is damaged"):
        forget(bucket, DATASET, keep=1, grace=NONE)
    assert len(bucket.list("artefacts")) == 12


def test_old_snapshots_are_forgotten_in_a_bucket_that_is_a_copied_store(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1, 2, 3)
    pin(store, DATASET, 1)
    shutil.copytree(store.root, tmp_path / "bucket")
    bucket = Bucket.open(f"file://{tmp_path}/bucket")
    put(bucket, f"snapshots/{DATASET}/notes.txt", b"")
    assert forget(bucket, DATASET, keep=1, grace=NONE) == ([1, 2], 2)
    assert (tmp_path / "bucket" / "snapshots" / DATASET / "pins.json").exists()


def test_a_directory_without_a_manifest_in_the_place_of_what_is_pulled_is_set_aside(
    tmp_path: Path, bucket: Bucket
) -> None:
    store, copy = filled(tmp_path / "store", 1), Store.open(tmp_path / "copy")
    push(store, bucket, DATASET)
    torn = copy.place("train", "v1")
    torn.mkdir(parents=True)
    (torn / "report.json").write_bytes(b"{}\n")  # as a copy that was broken off leaves it
    assert pull(copy, bucket, DATASET).n_fetched == 1
    assert current_value(copy) == 1
    assert (copy.root / "quarantine" / "train-v1-1" / "report.json").exists()


def test_what_is_no_copy_of_a_store_is_refused(tmp_path: Path, bucket: Bucket) -> None:
    store = filled(tmp_path / "store", 1)
    with pytest.raises(StoreError, match="There is no copy of a store in"):
        pull(store, bucket, DATASET)
    put(bucket, "holiday.jpg", b"")
    with pytest.raises(StoreError, match=r"holds other objects, such as holiday\.jpg"):
        push(store, bucket, DATASET)
    put(bucket, "store.json", b"[]")
    with pytest.raises(StoreError, match="is not the marker of a store"):
        push(store, bucket, DATASET)
    put(bucket, "store.json", b'{\n  "format_version": 99\n}\n')
    with pytest.raises(StoreError, match="99"):
        pull(store, bucket, DATASET)
    put(bucket, "store.json", b" " * (64 << 20) + b" ")
    with pytest.raises(StoreError, match="67,108,865 bytes"):
        pull(store, bucket, DATASET)


@pytest.mark.parametrize("address", ["", "p2rec", "http://127.0.0.1/x", "memory://", "/tmp/x", "s3:/x", "s3://"])
def test_an_address_of_no_bucket_is_refused_with_those_that_are(address: str) -> None:
    with pytest.raises(StoreError, match=r"is not the address of a bucket|cannot be used"):
        Bucket.open(address)


def test_a_directory_that_is_not_there_is_not_made_by_who_only_reads(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"file://{tmp_path}/bucket cannot be used"):
        Bucket.open(f"file://{tmp_path}/bucket")
    assert not (tmp_path / "bucket").exists()


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/x", "az://x/y?sig=secret"])
def test_secrets_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(StoreError) as caught:
        Bucket.open(address)
    assert "secret" not in caught.value.problem


@pytest.mark.slow
def test_keys_that_are_wrong_and_servers_that_are_not_there_are_one_error(
    tmp_path: Path, s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "store", 1)
    with pytest.raises(StoreError, match="s3://no-such-bucket"):
        push(store, Bucket.open("s3://no-such-bucket/x"), DATASET)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError) as caught:
        push(store, Bucket.open(s3()), DATASET)
    assert "AWS_ALLOW_HTTP" in caught.value.remedy
    assert "secret" not in str(caught.value)
