import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2rec_core.errors import ArtefactDamaged, StoreError
from storage.artefacts import ArtefactRef, FileEntry, InputRef, Manifest, canonical_json, content_key
from storage.manifest import digest_of, parse_canonical, render_json

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
settings_dicts = st.dictionaries(st.text(), values, max_size=4)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(v) for v in value] if isinstance(value, list) else value


@given(settings_dicts)
@settings(max_examples=100, deadline=None)
def test_the_order_of_keys_changes_neither_json_nor_key(obj: dict[str, Any]) -> None:
    assert canonical_json(obj) == canonical_json(reversed_keys(obj))
    assert content_key("s", obj, {}, "f") == content_key("s", reversed_keys(obj), {}, "f")
    assert parse_canonical(render_json(obj)) == obj


@given(settings_dicts, settings_dicts)
@settings(max_examples=100, deadline=None)
def test_other_settings_have_another_key(left: dict[str, Any], right: dict[str, Any]) -> None:
    same_json = canonical_json(left) == canonical_json(right)
    assert (content_key("s", left, {}, "f") == content_key("s", right, {}, "f")) == same_json


def test_canonical_json_by_hand() -> None:
    assert canonical_json({"b": [1, 2.5, True, None], "a": "ü"}) == '{"a":"ü","b":[1,2.5,true,null]}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "not JSON compliant"),
        ({"a": [float("-inf")]}, "not JSON compliant"),
        ({1: "a"}, "key 1 is not text"),
        ([{"a": {None: 1}}], "key None is not text"),
        (np.int64(3), "int64 is not JSON serializable"),
        ({"a"}, "set is not JSON serializable"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_has_no_one_json_text_is_refused(value: object, message: str) -> None:
    with pytest.raises(StoreError, match=f"cannot be stored as JSON: .*{message}"):
        canonical_json(value)


def _input(stage: str, key: str, file: str, sha256: str) -> dict[str, InputRef]:
    return {"embeddings": InputRef(stage, key, file, sha256)}


def test_early_cut_off_only_the_content_of_an_input_counts() -> None:
    base = content_key("cluster", {"k": 3}, _input("backbone", "k1", "item_embeddings", "a" * 64), "f")
    assert base == content_key("cluster", {"k": 3}, _input("other", "k2", "renamed", "a" * 64), "f")
    assert base != content_key("cluster", {"k": 3}, _input("backbone", "k1", "item_embeddings", "b" * 64), "f")


def test_every_part_of_the_key_counts() -> None:
    inputs = _input("backbone", "k1", "item_embeddings", "a" * 64)
    keys = {
        content_key("cluster", {"k": 3}, inputs, "f"),
        content_key("cluster2", {"k": 3}, inputs, "f"),
        content_key("cluster", {"k": 4}, inputs, "f"),
        content_key("cluster", {"k": 3}, inputs, "g"),
        content_key("cluster", {"k": 3}, {"renamed": inputs["embeddings"]}, "f"),
    }
    assert len(keys) == 5
    assert all(len(key) == 32 for key in keys)


def test_a_reference_survives_json() -> None:
    ref = ArtefactRef("backbone", "k1", {"history": "1" * 64, "checkpoint": "2" * 64})
    assert ArtefactRef.from_json(ref.to_json()) == ref


@pytest.mark.parametrize(
    "obj",
    [
        None,
        [],
        {},
        {"stage": "s", "key": "k"},
        {"stage": "s", "key": "k", "files": []},
        {"stage": "s", "key": "k", "files": {"f": "short"}},
        {"stage": "s", "key": "k", "files": {}, "more": 1},
    ],
)
def test_what_is_no_reference_is_refused(obj: object) -> None:
    with pytest.raises(StoreError, match="is not a reference to an artefact"):
        ArtefactRef.from_json(obj)


def _manifest(**changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "settings": {},
        "inputs": {},
        "fingerprint": "f",
        "files": {},
        "info": {},
        "wall_s": 1.0,
    }
    return Manifest.create("s", "k", **(arguments | changes))


def test_a_manifest_survives_its_file_and_names_library_versions() -> None:
    manifest = _manifest(settings={"a": 1.5}, inputs=_input("s", "k", "f", "a" * 64))
    assert Manifest.parse(manifest.render(), place="here") == manifest
    assert set(manifest.versions) == {"python", "numpy", "pyarrow", "duckdb", "torch", "transformers"}


def test_every_flipped_bit_of_a_manifest_is_seen() -> None:
    data = _manifest().render()
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(ArtefactDamaged, match=r"manifest here is damaged"):
                Manifest.parse(bytes(flipped), place="here")


def test_a_newer_format_is_not_called_damaged() -> None:
    fields = json.loads(_manifest().render()) | {"format_version": 2}
    data = render_json(fields | {"digest": digest_of(fields)})
    with pytest.raises(StoreError, match=r"here has format version 2; this P2Rec reads up to 1") as caught:
        Manifest.parse(data, place="here")
    assert not isinstance(caught.value, ArtefactDamaged)


def test_a_manifest_cannot_point_out_of_its_directory() -> None:
    entry = FileEntry("a", "../../secret.json", "json", None, 1, "a" * 64, {})
    with pytest.raises(ArtefactDamaged, match="file entry 'a' contradicts itself"):
        Manifest.parse(_manifest(files={"a": entry}).render(), place="here")
    entry = FileEntry("../a", "../a.json", "json", None, 1, "a" * 64, {})
    with pytest.raises(StoreError, match=r"'\.\./a' cannot be used as a file name"):
        Manifest.parse(_manifest(files={"../a": entry}).render(), place="here")
