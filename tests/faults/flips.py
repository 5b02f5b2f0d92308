"""Flipped bits, lost ends and zeroed blocks in every kind of file that is read again."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from p2rec_core.analysis.results import Cell
from p2rec_core.errors import P2RecError
from p2rec_core.inference import CONFIG, IDS, MODEL, Recommender, recommender_files
from p2rec_core.repeats import RepeatBias
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.data import IngestSettings
from p2rec_core.settings.experiment import experiment_settings
from p2rec_core.settings.sequence_model import Variant
from p2rec_core.training.checkpoint import Checkpoint, Checkpointer
from p2rec_core.training.recommender import EncoderShape, NextItemTraining, train_recommender
from storage.artefacts import ArtefactRef, Store
from storage.catalogue import Catalogue
from storage.ingest.partitions import joined
from storage.manifest import FORMAT_VERSION, MANIFEST, digest_of, render_json
from storage.snapshots import pinned, read_snapshot
from tasks.experiments import CellRecord, DatasetRecord, ExperimentRecord, read_record, record_path
from tasks.matrix_run import CellState
from tasks.sources import read_registration, register, registration_path
from tests.faults.house import DATASET, fill
from tests.faults.rows import Fate, Row, Timed

PART = "b corruption"
FLIPS, CUTS, BLOCKS = 1000, 100, 20
SEED = 1


@dataclass(frozen=True)
class Target:
    """A file and how it is used.

    Attributes:
        name: What it is called in the table.
        path: The file.
        read: Uses it; gives what it says, and whether the reader was told that something is wrong.
    """

    name: str
    path: Path
    read: Callable[[], tuple[object, bool]]


def flip_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Every kind of file; the quick form injects a twentieth."""
    share = 20 if quick else 1
    return [damaged(target, share) for target in targets(directory)]


def damaged(target: Target, share: int) -> Row:
    good = target.path.read_bytes()
    expected, told = target.read()
    assert not told, f"{target.name}: something is wrong before anything was injected"
    with Timed(Row(PART, f"{target.name} ({len(good):,} bytes)")) as row:
        for what, damaged in injections(good, share):
            target.path.write_bytes(damaged)
            row.add(*_judge(target, expected, what))
        target.path.write_bytes(good)
        if target.read() != (expected, False):
            row.problems.append("the whole file is not read as before")
    return row


def _judge(target: Target, expected: object, what: str) -> tuple[Fate, str]:
    try:
        found, told = target.read()
    except P2RecError as error:
        unnamed = target.path.name not in error.problem and target.path.parent.name not in error.problem
        return Fate.DETECTED, f"{what}: the file is not named: {error}" if unnamed or not error.remedy else ""
    except Exception as error:  # whatever else comes out of a reader is a traceback to its user
        return Fate.DETECTED, f"{what}: no clear error but {type(error).__name__}: {error}"
    if told:
        return Fate.DETECTED, ""
    return (Fate.HARMLESS, "") if found == expected else (Fate.WRONG, f"{what}: it gave {found!r:.200}")


def injections(good: bytes, share: int) -> Iterator[tuple[str, bytes]]:
    """Damaged versions of a file's content: bits anywhere, ends cut off, blocks of zeros."""
    draw = random.Random(SEED)
    bits = draw.sample(range(8 * len(good)), min(FLIPS // share, 8 * len(good)))
    for bit in bits:
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(changed)
    for end in [0, len(good) - 1, *draw.sample(range(len(good)), min(CUTS // share, len(good)))]:
        yield f"cut at {end}", good[:end]
    for start in draw.sample(range(len(good)), min(BLOCKS // share, len(good))):
        zeroed = good[:start] + bytes(len(good[start : start + 64])) + good[start + 64 :]
        if zeroed != good:
            yield f"zeros at {start}", zeroed


def targets(directory: Path) -> Iterator[Target]:
    """Every kind of file, small."""
    store = fill(directory / "store")
    artefact = store.load(read_snapshot(store, DATASET).entries["train"])
    table = artefact.path / "history.parquet"
    snapshots = store.root / "snapshots" / DATASET
    current = read_snapshot(store, DATASET)

    def sql() -> tuple[object, bool]:
        with Catalogue(store, current) as catalogue:
            return catalogue.query("FROM history ORDER BY ALL").to_pydict(), False

    def pointer() -> tuple[object, bool]:
        snapshot = read_snapshot(store, DATASET)
        return (snapshot.number, snapshot.digest), bool(snapshot.notes)

    yield Target("Parquet, read with SQL", table, sql)
    yield Target("Parquet, read in Python", table, lambda: (artefact.table("history").to_pydict(), False))
    yield Target(
        "safetensors of an artefact",
        artefact.path / "weights.safetensors",
        lambda: ({name: array.tolist() for name, array in artefact.tensors("weights").items()}, False),
    )
    yield Target("JSON of an artefact", artefact.path / "report.json", lambda: (artefact.json("report"), False))
    yield Target("manifest", artefact.path / MANIFEST, lambda: (store.load(artefact.ref()).manifest, False))
    yield Target("snapshot", snapshots / "000002.json", lambda: (read_snapshot(store, DATASET, 2), False))
    yield Target("pointer to the current snapshot", snapshots / "current.json", pointer)
    yield Target("pins", snapshots / "pins.json", lambda: (pinned(store, DATASET), False))
    yield Target(
        "marker of the store", store.root / "store.json", lambda: (Store.open(store.root, create=False).root, False)
    )
    yield from _of_tasks(directory, store, artefact.ref())
    yield _model(directory / "model", CONFIG)
    yield _model(directory / "model", MODEL)
    yield _model(directory / "model", IDS)


def _of_tasks(directory: Path, store: Store, ref: ArtefactRef) -> Iterator[Target]:
    """What stages and experiments keep beside artefacts."""
    data = directory / "clicks.csv"
    data.write_text("user_id,item_id\na,x\n")
    register(store, "clicks", data, IngestSettings(format="csv", timestamp_column=None, min_user_interactions=3))
    yield Target(
        "registration of a dataset",
        registration_path(store, "clicks"),
        lambda: (read_registration(store, "clicks"), False),
    )
    days = directory / "days"
    days.mkdir()
    for day in range(3):
        (days / f"{day}.csv").write_text("user_id,item_id\n" + "".join(f"u{n},i{day}\n" for n in range(9)))
    together = partial(joined, days, "csv", directory / "joined")
    yield Target("joined partitions", together(), lambda: (together().read_bytes(), False))
    path = _record(store, ref)
    yield Target("record of an experiment", path, lambda: (read_record(store, "tiny").to_json(), False))
    path = directory / "work"
    checkpointer = Checkpointer(path, every_s=0)
    for n in range(2):
        checkpointer.save(Checkpoint({"a/x": torch.arange(40.0) + n}, {"n": 7, "best": 0.25}))

    def checkpoint() -> tuple[object, bool]:
        reader = Checkpointer(path, every_s=0)
        loaded = reader.load()
        assert loaded is not None
        return ({name: t.tolist() for name, t in loaded.tensors.items()}, loaded.cursor), bool(reader.notes)

    yield Target("checkpoint of a training", path / "checkpoint.safetensors", checkpoint)


def _record(store: Store, ref: ArtefactRef) -> Path:
    values = {"name": "tiny", "datasets": ["sample"], "backbones": ["gru4rec"], "seeds": [1]}
    values |= {"arms": {"base": {"variant": "base"}}}
    cell = Cell("sample", "gru4rec", "base", 1)
    done = CellRecord(
        cell=cell, variant=Variant.BASE, digest="d" * 64, state=CellState.DONE, reason="", slots={"r": ref},
        trained="r", evaluated="r", validation=0.25, wall_s=1.5,
    )  # fmt: skip
    settings = experiment_settings(values, place="here")
    record = ExperimentRecord(settings, "tiny", {cell: done}, {"sample": DatasetRecord(True, {"r": ref})})
    fields = json.loads(json.dumps(record.to_json())) | {"format_version": FORMAT_VERSION}
    path = record_path(store, "tiny")
    path.parent.mkdir()
    path.write_bytes(render_json(fields | {"digest": digest_of(fields)}))
    return path


def _model(directory: Path, name: str) -> Target:
    """An exported model of five items, trained for one epoch."""
    if not directory.exists():
        sequences = RaggedSequences(np.array([1, 2, 3, 4, 5, 1], np.int32), np.array([0, 3, 6], np.int64))
        shape = {"hidden_size": 4, "inner_size": 4, "dropout": 0.0, "max_length": 3}
        encoder = EncoderShape("gru4rec", shape)
        training = NextItemTraining(
            learning_rate=1e-2, weight_decay=0.0, batch_positions=64, n_negatives=None, max_epochs=1, patience=1,
            warmup_steps=0, cosine=False, seed=1,
        )  # fmt: skip
        trained = train_recommender(
            sequences, np.array([1, 2], np.int32), n_items=5, encoder=encoder, training=training,
            device=torch.device("cpu"),
        )  # fmt: skip
        files = recommender_files(
            trained.tensors, list("abcde"), np.arange(5, dtype=np.int64), encoder,
            repeat_bias=RepeatBias(last=-0.5, earlier=0.25), source={"dataset": "tiny"},
        )  # fmt: skip
        directory.mkdir()
        for file, content in files.items():
            (directory / file).write_bytes(content)

    def read() -> tuple[object, bool]:
        return Recommender.load(directory).recommend([["a", "b"], []], n=3, seen="weigh"), False

    return Target(f"exported model, {name}", directory / name, read)
