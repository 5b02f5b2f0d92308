import dataclasses
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage.artefacts import Artefact, ArtefactRef, Store
from storage.schemas import conform
from storage.tensors import encode

HOSTILE = [
    "", ".", "..", "../x", "/etc", "a/b", "a\\b", "a\0b", "a\nb", "A", "-rf", ".health", "_a", "a b", "a~b",
    "x" * 65, "ü", "\u202ea", "а", "$(id)", "{{a}}", "a'b", "CON", "a\n", None, 3, Path("a"),
]  # fmt: skip


def test_what_is_written_can_be_read(store: Store, artefact: Artefact, tables: SimpleNamespace) -> None:
    found = store.find("backbone", "k1")
    assert found == artefact
    assert found is not None
    store.verify(found)
    assert found.table("item_embeddings").equals(conform("item_embeddings", tables.item_embeddings))
    assert found.table("item_embeddings", ["source", "item_idx"]).column_names == ["source", "item_idx"]
    np.testing.assert_array_equal(found.tensors("checkpoint")["w"], [[0, 1, 2], [3, 4, 5]])
    assert found.tensor_metadata("checkpoint") == {"epoch": "3"}
    assert found.json("report") == {"best": 0.25, "name": "ü"}
    assert found.manifest.info == {"n_items": 3}
    assert found.manifest.wall_s == 2.5
    assert found.files["item_embeddings"].rows == 3
    assert found.files["checkpoint"].columns == {"w": "float32[2,3]"}
    assert found.sha256("report") == found.ref().files["report"] == found.input("report").sha256
    assert store.load(ArtefactRef.from_json(found.ref().to_json())) == found
    assert sorted(path.name for path in found.path.iterdir()) == [
        "checkpoint.safetensors",
        "item_embeddings.parquet",
        "manifest.json",
        "report.json",
    ]


def test_asking_for_what_is_not_there_names_what_is(artefact: Artefact) -> None:
    with pytest.raises(StoreError, match=r"backbone/k1 has no table 'report'\. It has: item_embeddings"):
        artefact.table("report")
    with pytest.raises(StoreError, match=r"has no file 'x'\. It has: checkpoint, item_embeddings, report"):
        artefact.sha256("x")
    with pytest.raises(StoreError, match=r"'item_embeddings' has no column 'idx'\. Use item_idx, source"):
        artefact.table("item_embeddings", ["item_idx", "idx"])


@pytest.mark.parametrize("file", ["item_embeddings", "checkpoint", "report"])
def test_a_flipped_bit_is_detected_by_verify_naming_file_and_hashes(
    store: Store, artefact: Artefact, file: str
) -> None:
    entry = artefact.files[file]
    path = artefact.path / entry.path
    good = path.read_bytes()
    draw = random.Random(0)
    for _ in range(40):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ArtefactDamaged, match=rf"{entry.path} is damaged: .*expected sha256 {entry.sha256}"):
            store.verify(artefact)
        if entry.kind != "table":
            with pytest.raises(ArtefactDamaged, match=rf"{entry.path} is damaged: expected sha256"):
                artefact.tensors(file) if entry.kind == "tensors" else artefact.json(file)


def test_a_flipped_bit_of_a_table_is_detected_on_reading(store: Store, tables: SimpleNamespace, publish: Any) -> None:
    curve = pa.table(
        {
            "epoch": pa.array(range(5000), pa.int32()),
            "metric": ["loss"] * 5000,
            "value": np.random.default_rng(0).random(5000),
        }
    )
    artefact = publish("train", {"history": curve})
    path = artefact.path / "history.parquet"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ArtefactDamaged, match=r"history\.parquet is damaged: expected sha256"):
        artefact.table("history")


def test_another_table_under_the_name_is_detected_on_reading(
    artefact: Artefact, tables: SimpleNamespace, publish: Any
) -> None:
    other = publish("train", {"history": tables.history})
    shutil.copy(other.path / "history.parquet", artefact.path / "item_embeddings.parquet")
    with pytest.raises(ArtefactDamaged, match=r"item_embeddings\.parquet is damaged: expected sha256"):
        artefact.table("item_embeddings")


@pytest.mark.parametrize("file", ["item_embeddings.parquet", "checkpoint.safetensors", "report.json"])
def test_truncated_missing_extra_and_linked_files_are_detected(store: Store, artefact: Artefact, file: str) -> None:
    path = artefact.path / file
    good = path.read_bytes()
    for length in {0, 1, len(good) // 2, len(good) - 1}:
        path.write_bytes(good[:length])
        with pytest.raises(ArtefactDamaged, match=f"expected {len(good)} bytes, found {length}"):
            store.verify(artefact)
    path.unlink()
    with pytest.raises(ArtefactMissing, match=f"{file} is missing. Run the pipeline again"):
        store.verify(artefact)
    read = {"item_embeddings": artefact.table, "checkpoint": artefact.tensors, "report": artefact.json}
    with pytest.raises(ArtefactMissing, match=f"{file} is missing"):
        read[path.stem](path.stem)
    elsewhere = store.root / "elsewhere"
    elsewhere.write_bytes(good)
    path.symlink_to(elsewhere)
    with pytest.raises(ArtefactDamaged, match=f"{file} is not a regular file"):
        store.verify(artefact)
    path.unlink()
    path.write_bytes(good)
    (artefact.path / "extra.bin").touch()
    with pytest.raises(ArtefactDamaged, match=r"extra\.bin is not in the manifest"):
        store.verify(artefact)


def test_a_damaged_or_foreign_manifest_is_not_an_artefact(store: Store, artefact: Artefact) -> None:
    manifest = artefact.path / "manifest.json"
    good = manifest.read_text()
    for text in ("", "{", "[]", "{}", good + " ", good.replace('"n_items": 3', '"n_items": 4')):
        manifest.write_text(text)
        with pytest.raises(ArtefactDamaged, match=r"manifest\.json is damaged"):
            store.find("backbone", "k1")
    manifest.write_text(good)
    shutil.copytree(artefact.path, artefact.path.with_name("k2"))
    with pytest.raises(ArtefactDamaged, match="is that of backbone/k1"):
        store.find("backbone", "k2")
    damaged: list[ArtefactDamaged] = []
    assert [a.key for a in store.artefacts(on_damaged=damaged.append)] == ["k1"]
    assert len(damaged) == 1
    with pytest.raises(ArtefactDamaged, match="is that of backbone/k1"):
        list(store.artefacts())
    manifest.unlink()
    assert store.find("backbone", "k1") is None
    with pytest.raises(ArtefactMissing, match="There is no artefact in "):
        store.verify(artefact)


def test_a_reference_to_other_content_or_to_nothing_is_refused(store: Store, artefact: Artefact) -> None:
    ref = artefact.ref()
    with pytest.raises(ArtefactMissing, match="There is no artefact backbone/k9 in"):
        store.load(dataclasses.replace(ref, key="k9"))
    other = dataclasses.replace(ref, files=ref.files | {"report": "0" * 64})
    with pytest.raises(ArtefactDamaged, match=r"'report' of artefact backbone/k1 .* expected sha256 0{64}, found"):
        store.load(other)


def test_a_changed_manifest_is_detected_by_verify(store: Store, artefact: Artefact) -> None:
    before = dataclasses.replace(artefact, manifest=dataclasses.replace(artefact.manifest, wall_s=9.0))
    with pytest.raises(ArtefactDamaged, match=r"manifest\.json has changed since it was read"):
        store.verify(before)


def test_without_publish_nothing_remains(store: Store, tables: SimpleNamespace, publish: Any) -> None:
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        writer.table("history", tables.history)
        assert len(list(store.staging.iterdir())) == 1
    assert not list(store.staging.iterdir())
    with pytest.raises(StoreError, match="There is no table 'nothing'"):
        publish("s", {"history": tables.history, "nothing": tables.history}, key="k")
    assert not list(store.staging.iterdir())
    assert store.find("s", "k") is None


def test_publishing_removes_the_workspace_of_its_key_only(store: Store, publish: Any) -> None:
    mine, other = store.workspace("s", "k"), store.workspace("s", "other")
    (mine / "checkpoint").touch()
    publish("s", {}, key="k")
    assert not mine.exists()
    assert other.is_dir()


def test_publishing_the_same_again_is_fine_and_other_content_is_refused(
    store: Store, tables: SimpleNamespace, publish: Any
) -> None:
    first = publish("train", {"history": tables.history}, key="k")
    assert publish("train", {"history": tables.history}, key="k") == first
    changed = tables.history.set_column(2, "value", [[0.25]])
    with pytest.raises(StoreError, match=r"already holds train/k with other content \(differing: history\)"):
        publish("train", {"history": changed}, key="k")
    assert first.table("history").equals(conform("history", tables.history))


def test_publishing_over_a_damaged_artefact_sets_it_aside(store: Store, tables: SimpleNamespace, publish: Any) -> None:
    first = publish("train", {"history": tables.history}, key="k")
    (first.path / "history.parquet").write_bytes(b"damaged")
    store.verify(publish("train", {"history": tables.history}, key="k"))
    (first.path / "manifest.json").unlink()
    store.verify(publish("train", {"history": tables.history}, key="k"))
    aside = store.root / "quarantine"
    assert (aside / "train-k-1" / "history.parquet").read_bytes() == b"damaged"
    assert "history.parquet is damaged" in (aside / "train-k-1" / "discarded.txt").read_text()
    assert (aside / "train-k-2" / "discarded.txt").read_text() == "It has no manifest.\n"


def test_discard_keeps_everything_and_numbers_it(store: Store, publish: Any) -> None:
    for n in (1, 2):
        publish("s", {}, key="k")
        assert store.discard("s", "k", "a test") == store.root / "quarantine" / f"s-k-{n}"
        assert store.find("s", "k") is None
    with pytest.raises(ArtefactMissing, match="There is no artefact s/k to discard"):
        store.discard("s", "k", "a test")


def test_a_writer_refuses_what_would_not_be_a_file_of_its_own(store: Store) -> None:
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        writer.json("report", 1)
        with pytest.raises(StoreError, match="s/k already has a file 'report'"):
            writer.tensors("report", {"a": np.zeros(1)})
        with pytest.raises(StoreError, match="already has a file 'manifest'"):
            writer.json("manifest", {})
        with pytest.raises(StoreError, match=r"'\.\./x' cannot be used as a file name"):
            writer.json("../x", {})
        with pytest.raises(StoreError, match="Tensors 'a' cannot be stored"):
            writer.tensors("objects", {"a": np.array([object()])})
        writer.publish({}, 0.0)
        with pytest.raises(StoreError, match="s/k is published already"):
            writer.json("late", 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_before_anything_is_touched(store: Store, name: Any) -> None:
    before = sorted(store.root.rglob("*"))
    for attempt in (
        lambda: store.find(name, "k"),
        lambda: store.find("s", name),
        lambda: store.workspace("s", name),
        lambda: store.discard(name, "k", ""),
        lambda: store.lock("s", name).__enter__(),
        lambda: store.write(name, "k", settings={}, inputs={}, fingerprint="").__enter__(),
    ):
        with pytest.raises(StoreError, match=r"cannot be used as a (stage|key)\. Use 1 to 64 of"):
            attempt()
    assert sorted(store.root.rglob("*")) == before


def test_a_linked_stage_does_not_lead_out_of_the_store(store: Store, tmp_path: Path) -> None:
    (store.root / "artefacts" / "s").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="leads out of the store, to "):
        store.find("s", "k")


def test_a_lock_that_is_a_link_is_refused(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (store.root / "locks" / "s~k.lock").symlink_to(target)
    with pytest.raises(StoreError, match=r"The lock .*s~k\.lock is a symbolic link"), store.lock("s", "k"):
        pass
    assert target.read_text() == "precious"


def test_a_store_is_private_where_it_is_unfinished(store: Store) -> None:
    assert store.staging.stat().st_mode & 0o777 == 0o700
    assert (store.root / "locks").stat().st_mode & 0o777 == 0o700


def test_opening(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"There is no store in .*none\. Check the path"):
        Store.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot use .*/file/store.*Not a directory"):
        Store.open(tmp_path / "file" / "store")
    root = Store.open(tmp_path / "new").root
    assert Store.open(root, create=False).root == root
    marker = root / "store.json"
    marker.write_text('{\n  "format_version": 2\n}\n')
    with pytest.raises(StoreError, match=r"has format version 2; this P2Rec reads up to 1\. Install a newer"):
        Store.open(root)
    marker.write_text("torn")
    with pytest.raises(StoreError, match=r"store\.json is not the marker of a P2Rec store"):
        Store.open(root)


def test_a_read_only_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(StoreError, match=r"cannot use .*/store: Read-only file system\. Give this user write"):
        Store.open(tmp_path / "store")


def test_the_same_table_has_the_same_bytes_however_it_is_cut(
    store: Store, tables: SimpleNamespace, publish: Any
) -> None:
    n = 3000
    whole = pa.table(
        {
            "user_idx": pa.array(range(1, n + 1), pa.int32()),
            "item_idx": pa.array([1 + i % 7 for i in range(n)], pa.int32()),
            "timestamp": pa.array([None if i % 5 == 0 else i / 3 for i in range(n)]),
            "position": pa.array(range(n)),
        }
    )
    pieces = pa.concat_tables([whole.slice(0, 10), whole.slice(10, 990), whole.slice(1000)])
    pandas = pieces.replace_schema_metadata({"pandas": "{}", "host": "this one"})
    hashes = {
        publish("ingest", {"interactions": table}, key=f"k{i}").sha256("interactions")
        for i, table in enumerate([whole, pieces, pandas])
    }
    assert len(hashes) == 1


def test_the_same_tensors_have_the_same_bytes_in_every_process() -> None:
    script = (
        "import numpy as np; from storage.tensors import encode;"
        "print(encode({'b': np.ones(2), 'a': np.eye(2)}, {str(i): 'x' for i in range(9)}))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    runs = {subprocess.check_output([sys.executable, "-c", script], env=environment) for _ in range(3)}
    assert len(runs) == 1


def test_tensors_keep_order_type_and_shape_and_stay_readable_elsewhere() -> None:
    tensors = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "strided": np.arange(10)[::3],
        "scalar": np.array(2.5),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float16),
    }
    loaded = safetensors.numpy.load(encode(tensors, {"β": "ü", "a": "b"}))
    assert loaded.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_array_equal(loaded[name], expected)
        assert loaded[name].dtype == expected.dtype


def test_nan_in_a_plain_column_survives_the_read_back(publish: Any) -> None:
    curve = pa.table({"epoch": pa.array([0], pa.int32()), "metric": ["loss"], "value": [float("nan")]})
    assert np.isnan(publish("train", {"history": curve}).table("history").column("value")[0].as_py())
