"""Mutated bytes at every door: what comes out is a clear error or what a whole file says, never another exception."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2rec_core.errors import DataError, P2RecError, SettingsError, StoreError
from p2rec_core.settings.experiment import read_experiment
from p2rec_core.settings.pipeline import pipeline_settings
from storage.artefacts import Artefact, ArtefactRef, Store
from storage.ingest import read_interactions
from storage.manifest import MANIFEST, Manifest
from storage.snapshots import pinned, publish_snapshot, read_snapshot

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
FULL = settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
TOKENS = [b"", b"\0", b"\xff\xfe", b'"', b"\n", b"{", b"}", b"[" * 3000, b"null", b"1e999", b"-1", b"9" * 5000]
TOKENS += [b"NaN", b"../"]
TOKENS += [b"\r", b",", b"\t", b"::", "é\u202e".encode(), b"true", b"format_version", b"digest"]


@st.composite
def mutated(draw: Any, seeds: list[bytes]) -> bytes:
    """A valid file with some places overwritten, cut out, doubled or with a token put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 20)))
        match draw(st.integers(0, 3)):
            case 0:
                data[start:stop] = draw(st.binary(max_size=8))
            case 1:
                data[start:stop] = draw(st.sampled_from(TOKENS))
            case 2:
                data[start:start] = data[start:stop]
            case _:
                del data[start:stop]
    return bytes(data)


def is_clear(error: P2RecError) -> None:
    """Whether an error says what is wrong and what to do."""
    assert error.problem
    assert error.remedy


def check_manifest(data: bytes, good: Manifest) -> None:
    try:
        found = Manifest.parse(data, place="here")
    except StoreError:
        return
    assert found.render() == data
    assert found == good


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artefact]:
    store = Store.open(tmp_path_factory.mktemp("fuzz") / "store")
    with store.write("s", "k", settings={"a": 1}, inputs={}, fingerprint="f") as writer:
        writer.json("value", {"a": [1, 2.5, None, "ü"]})
        artefact = writer.publish({"n": 1}, 0.5)
    publish_snapshot(store, "tiny", {"slot": artefact.ref()}, {"n": 1})
    return store, artefact


def test_a_manifest(known: tuple[Store, Artefact]) -> None:
    artefact = known[1]
    seed = (artefact.path / MANIFEST).read_bytes()

    @QUICK
    @given(mutated([seed]))
    def run(data: bytes) -> None:
        check_manifest(data, artefact.manifest)

    run()


@pytest.mark.parametrize("name", ["000001.json", "current.json", "pins.json"])
def test_the_files_of_snapshots(known: tuple[Store, Artefact], name: str) -> None:
    store = known[0]
    path = store.root / "snapshots" / "tiny" / name
    seed = path.read_bytes() if path.exists() else b'{\n  "digest": "0",\n  "format_version": 1,\n  "pinned": []\n}\n'
    whole = read_snapshot(store, "tiny")

    @QUICK
    @given(mutated([seed]))
    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = read_snapshot(store, "tiny")
            assert (found.entries, found.info) == (whole.entries, whole.info)
            assert pinned(store, "tiny") == frozenset()
        except StoreError as error:
            is_clear(error)

    try:
        run()
    finally:
        path.unlink() if name == "pins.json" else path.write_bytes(seed)


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=9)
SHALLOW = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.text(max_size=9), LEAF, max_size=3)
JSON = SHALLOW | st.dictionaries(st.sampled_from(["stage", "key", "files", "x"]), SHALLOW, max_size=4)


@QUICK
@given(JSON)
def test_a_reference_to_an_artefact(value: Any) -> None:
    try:
        ref = ArtefactRef.from_json(value)
    except StoreError:
        return
    assert ref.to_json() == value


PIPELINE = b'variants = ["base"]\n[ingest]\nseed = 3\nformat = "csv"\n[clusters]\nn_clusters = 8\nfiner = [20]\n'
EXPERIMENT = b'datasets = ["sample"]\nbackbones = ["gru4rec"]\nseeds = [1]\n[arms.base]\nvariant = "base"\n'
EXPERIMENT += b'[tuning]\n"clusters.n_clusters" = [5, 10]\n'


def check_configuration(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    try:
        chosen = pipeline_settings(dataset="sample", config=path)
        assert chosen.model_validate(json.loads(chosen.model_dump_json())) == chosen
    except SettingsError as error:
        is_clear(error)


def test_a_configuration(tmp_path: Path) -> None:
    QUICK(given(mutated([PIPELINE]))(lambda data: check_configuration(data, tmp_path / "config.toml")))()


def test_an_experiment(tmp_path: Path) -> None:
    def run(data: bytes) -> None:
        path = tmp_path / "experiment.toml"
        path.write_bytes(data)
        try:
            read_experiment(path)
        except SettingsError as error:
            is_clear(error)

    QUICK(given(mutated([EXPERIMENT]))(run))()
    assert tomllib.loads(EXPERIMENT.decode())


CSV = b'user_id,item_id,timestamp\nu1,i1,1500000000\nu2,i2,1500000001\n"u,3","i""3",1500000002\n'
FILES = {
    "csv": CSV,
    "tsv": CSV.replace(b",", b"\t"),
    "recbole": b"user_id:token\titem_id:token\ttimestamp:float\n1\t2\t1500000000\n1\t3\t1500000001\n",
    "movielens": b"1::10::5::978300760\n2::11::3::978300761\n",
    "sequences": b"a x y z\nb x y\n",
}


def check_front_door(format: str, data: bytes, path: Path) -> None:
    path.write_bytes(data)
    try:
        raw = read_interactions(
            path, format=format, user_column="user_id", item_column="item_id", timestamp_column="timestamp",
            on_error="quarantine", max_rejected=1.0,
        )  # fmt: skip
    except DataError as error:
        is_clear(error)
        return
    known = data.replace(b"\r", b"").replace(b'"', b"")
    for name in ("user_id", "item_id"):
        for text in raw.interactions.column(name).to_pylist():
            assert text
            assert text.encode().replace(b'"', b"").replace(b"\r", b"") in known
    assert raw.interactions.num_rows + raw.rejects.num_rows > 0


@pytest.mark.parametrize("format", FILES)
def test_the_front_door(tmp_path: Path, format: str) -> None:
    path = tmp_path / "data.txt"
    settings(QUICK, max_examples=25)(
        given(mutated([FILES[format]]))(lambda data: check_front_door(format, data, path))
    )()


@pytest.mark.slow
@pytest.mark.parametrize("format", FILES)
def test_the_front_door_often(tmp_path: Path, format: str) -> None:
    path = tmp_path / "data.txt"
    settings(FULL, max_examples=2000)(
        given(mutated([FILES[format]]))(lambda data: check_front_door(format, data, path))
    )()


@pytest.mark.slow
def test_manifest_and_configuration_often(known: tuple[Store, Artefact], tmp_path: Path) -> None:
    artefact = known[1]
    seed = (artefact.path / MANIFEST).read_bytes()
    FULL(given(mutated([seed]))(lambda data: check_manifest(data, artefact.manifest)))()
    FULL(given(mutated([PIPELINE]))(lambda data: check_configuration(data, tmp_path / "config.toml")))()
