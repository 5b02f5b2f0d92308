from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from storage.artefacts import Artefact, InputRef, Store, content_key

SETTINGS = {"seed": 1, "dim": 2}


def ints(*values: int) -> pa.Array:
    return pa.array(values, pa.int32())


def vectors(*rows: list[float]) -> pa.Array:
    flat = np.asarray(rows, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


@pytest.fixture(scope="session")
def tables() -> SimpleNamespace:
    """A tiny dataset: three items, of which 1 and 2 are alike, and two users."""
    n_train = {"n_train": ints(3, 2, 1)}
    curve = {"epoch": ints(0), "metric": ["loss"], "value": [0.5]}
    return SimpleNamespace(
        items=pa.table({"item_idx": ints(1, 2, 3), "item_id": ["a", "b'; DROP VIEW items--", "ü"], **n_train}),
        users=pa.table({"user_idx": ints(1, 2), "user_id": ["u1", "u2"], "n_train": ints(2, 1)}),
        sequences=pa.table({"user_idx": ints(1, 2), "items": pa.array([[1, 2], [3]], pa.list_(pa.int32()))}),
        test=pa.table({"user_idx": ints(1, 2), "item_idx": ints(3, 1)}),
        item_embeddings=pa.table(
            {
                "item_idx": ints(1, 2, 3),
                "source": ["sasrec"] * 3,
                "trained": [True, True, False],
                "embedding": vectors([1, 0], [0.9, 0.1], [0, 1]),
            }
        ),
        item_clusters=pa.table(
            {
                "item_idx": ints(1, 2, 3),
                "cluster": ints(0, 0, 1),
                "distance": pa.array([0.2, 0.1, 0.0], pa.float32()),
            }
        ),
        user_preferences=pa.table(
            {"user_idx": ints(1, 2), "n_train": ints(2, 1), "preference": vectors([0.25, 0.75], [1, 0])}
        ),
        history=pa.table(curve),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


Publish = Callable[..., Artefact]


@pytest.fixture(scope="session")
def publish_in() -> Publish:
    def publish_in(store: Store, stage: str, contents: dict[str, pa.Table], *, key: str | None = None) -> Artefact:
        key = key or content_key(stage, SETTINGS, {}, "f")
        with store.write(stage, key, settings=SETTINGS, inputs={}, fingerprint="f") as writer:
            for name, table in contents.items():
                writer.table(name, table)
            return writer.publish({}, 1.0)

    return publish_in


@pytest.fixture
def publish(store: Store, publish_in: Publish) -> Publish:
    return partial(publish_in, store)


@pytest.fixture
def artefact(store: Store, tables: SimpleNamespace) -> Artefact:
    """One with a file of every kind."""
    source = {"interactions": InputRef("ingest", "k0", "interactions", "0" * 64)}
    with store.write("backbone", "k1", settings=SETTINGS, inputs=source, fingerprint="f") as writer:
        writer.table("item_embeddings", tables.item_embeddings)
        writer.tensors("checkpoint", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"epoch": "3"})
        writer.json("report", {"best": 0.25, "name": "ü"})
        return writer.publish({"n_items": 3}, 2.5)


@pytest.fixture(autouse=True)
def _nothing_left_in_staging(tmp_path: Path) -> Iterator[None]:
    yield
    staging = tmp_path / "store" / "staging"
    assert not staging.exists() or not list(staging.iterdir())
