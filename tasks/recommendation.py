"""Recommending with a model of a snapshot: whom to recommend to, what, and the table of it.

Everything that is known of a user counts: training, validation and test items. Nothing enters the store.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2rec_core.errors import ArtefactDamaged, DataError, SettingsError
from p2rec_core.progress import Progress, silent
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.sequence_model import EncoderSettings, Variant
from storage.artefacts import Artefact, Store
from storage.manifest import REBUILD
from storage.snapshots import Snapshot
from tasks.arrays import ragged, targets
from tasks.machine import check_device

if TYPE_CHECKING:
    from p2rec_core.recommendation import Recommendations
    from p2rec_core.recommender import Recommender
    from p2rec_core.repeats import RepeatBias
    from p2rec_core.training.recommender import EncoderShape

BEST_FIRST = (Variant.P2REC, Variant.CI, Variant.BASE)
"""Which variant of a recommender is taken if nobody chooses."""

COLUMNS = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("source", pa.string()),
    ]
)
"""Columns of recommendations. ``rank`` is from 1. ``source`` is ``model``; or ``popularity`` for a user without any
known item, whose scores are numbers of interactions."""

_SOURCES = pa.array(["popularity", "model"])


class Unknown(StrEnum):
    """What is done about an identifier in a file that the dataset does not know."""

    ERROR = "error"
    SKIP = "skip"


def verified_artefact(store: Store, snapshot: Snapshot, slot: str) -> Artefact:
    """The artefact of a slot, every byte of it checked.

    Raises:
        SettingsError: The snapshot has no such slot.
        ArtefactMissing: The artefact or a file of it is gone.
        ArtefactDamaged: It is not what its manifest says.
    """
    if slot not in snapshot.entries:
        raise SettingsError(
            f"Snapshot {snapshot.number} of {snapshot.dataset!r} has no slot {slot!r}.",
            remedy=f"Choose one of: {', '.join(snapshot.entries)}.",
        )
    artefact = store.load(snapshot.entries[slot])
    store.verify(artefact)
    return artefact


@dataclass(frozen=True)
class PublishedRecommender:
    """A recommender of a snapshot and the dataset that it was trained on; ``open_recommender`` makes one.

    Attributes:
        snapshot: The snapshot.
        slot: The recommender's slot.
        model: Its artefact, verified.
        ingest: The dataset's artefact, verified.
        repeat_bias: What ``weigh`` adds to the scores of a user's own items (last, earlier); None where no evaluation
            of the snapshot is of this model.
    """

    snapshot: Snapshot
    slot: str
    model: Artefact
    ingest: Artefact
    repeat_bias: tuple[float, float] | None

    @cached_property
    def item_ids(self) -> pa.Array:
        """The owner's identifiers; that of item i + 1 at place i."""
        return self.ingest.table("items", ["item_id"]).column("item_id").combine_chunks()

    @cached_property
    def item_idx(self) -> dict[str, int]:
        """From the owner's identifiers to items 1 … N."""
        return {item_id: item for item, item_id in enumerate(self.item_ids.to_pylist(), start=1)}

    @cached_property
    def user_ids(self) -> pa.Array:
        """The owner's identifiers; that of row i of ``history`` at place i."""
        return self.ingest.table("users", ["user_id"]).column("user_id").combine_chunks()

    @cached_property
    def history(self) -> RaggedSequences:
        """All that is known of the dataset's users: training, validation and test items."""
        known = ragged(self.ingest.table("sequences"))
        for part in ("validation", "test"):
            known = known.appended(targets(self.ingest.table(part), len(known)))
        return known

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """int64 (N,) interactions of each item."""
        return np.bincount(self.history.items, minlength=len(self.item_ids) + 1)[1:].astype(np.int64)

    def encoder(self) -> "EncoderShape":
        """The encoder's shape."""
        from p2rec_core.training.recommender import EncoderShape

        settings = EncoderSettings.model_validate(self.model.manifest.settings["encoder"])
        return EncoderShape(settings.backbone, settings.options())

    def bias(self) -> "RepeatBias | None":
        """``repeat_bias`` as the core's type."""
        from p2rec_core.repeats import RepeatBias

        return None if self.repeat_bias is None else RepeatBias(*self.repeat_bias)

    def facts(self) -> dict[str, Any]:
        """What an output says of where it comes from, JSON values."""
        return {
            "dataset": self.snapshot.dataset,
            "snapshot": self.snapshot.number,
            "slot": self.slot,
            "artefact": f"{self.model.stage}/{self.model.key}",
            "model_sha256": self.model.sha256("model"),
            "ingest": f"{self.ingest.stage}/{self.ingest.key}",
        }


def open_recommender(store: Store, snapshot: Snapshot, slot: str | None = None) -> PublishedRecommender:
    """Open a recommender of a snapshot.

    Args:
        store: The store.
        snapshot: The snapshot.
        slot: The slot, e.g. ``recommender.sasrec.p2rec``; None takes +P2Rec, else +CI, else Base.

    Raises:
        SettingsError: There is no such slot, no recommender is in it, or several could be meant.
        ArtefactMissing: An artefact or a file of one is gone.
        ArtefactDamaged: An artefact is not what its manifest says, or the model was trained on other items.
    """
    chosen = slot or _default_slot(snapshot)
    model = verified_artefact(store, snapshot, chosen)
    if "model" not in model.files or "encoder" not in model.manifest.settings:
        raise SettingsError(
            f"Slot {chosen!r} holds no sequential recommender.",
            remedy=f"Choose one of: {', '.join(_recommender_slots(snapshot)) or 'none'}.",
        )
    ingest = verified_artefact(store, snapshot, "ingest")
    trained_on, published = model.manifest.inputs["items"].sha256, ingest.sha256("items")
    if trained_on != published:
        raise ArtefactDamaged(
            f"The model in slot {chosen!r} was trained on the items {trained_on}, and the snapshot's are {published}.",
            remedy=REBUILD,
        )
    return PublishedRecommender(snapshot, chosen, model, ingest, _repeat_bias(store, snapshot, model))


def _recommender_slots(snapshot: Snapshot) -> list[str]:
    return [slot for slot in snapshot.entries if slot.split(".")[0] in ("recommender", "backbone")]


def _default_slot(snapshot: Snapshot) -> str:
    slots = [slot for slot in snapshot.entries if slot.startswith("recommender.")]
    for variant in BEST_FIRST:
        fitting = [slot for slot in slots if slot.endswith(f".{variant}")]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise SettingsError(
                f"Snapshot {snapshot.number} of {snapshot.dataset!r} has several recommenders.",
                remedy=f"Choose one with --slot: {', '.join(fitting)}.",
            )
    raise SettingsError(
        f"Snapshot {snapshot.number} of {snapshot.dataset!r} has no recommender.",
        remedy=f"Train one with `p2rec run -d {snapshot.dataset}`.",
    )


def _repeat_bias(store: Store, snapshot: Snapshot, model: Artefact) -> tuple[float, float] | None:
    """What the evaluation of this very model fitted."""
    for slot, ref in snapshot.entries.items():
        if slot.split(".")[0] != "evaluation":
            continue
        manifest = store.load(ref).manifest
        evaluated = manifest.inputs.get("model")
        if evaluated is not None and evaluated.sha256 == model.sha256("model"):
            for fitted in manifest.info.get("repeat_bias", ()):
                return float(fitted["last"]), float(fitted["earlier"])
    return None


@dataclass(frozen=True)
class Users:
    """Whom to recommend to.

    Attributes:
        user_ids: Their identifiers, by row of ``history``.
        history: What is known of each.
        rows: int64 (B,) rows of ``history`` that are meant, in the order of the output.
        n_skipped: Identifiers in a file that the dataset does not know and that were passed over.
    """

    user_ids: pa.Array
    history: RaggedSequences
    rows: NDArray[np.int64]
    n_skipped: int = 0


def known_users(published: PublishedRecommender, path: Path | None = None, unknown: Unknown = Unknown.ERROR) -> Users:
    """Users of the dataset.

    Args:
        published: The recommender.
        path: File with a user's identifier on each line; None takes all users.
        unknown: What is done about identifiers that the dataset does not have.

    Raises:
        DataError: The file cannot be read, or an identifier is unknown or there twice.
    """
    n_users = len(published.user_ids)
    if path is None:
        return Users(published.user_ids, published.history, np.arange(n_users))
    row_of = {user_id: row for row, user_id in enumerate(published.user_ids.to_pylist())}
    line_of: dict[str, int] = {}
    rows, n_skipped = [], 0
    for line, user_id in _lines(path):
        _refuse_second(path, line, user_id, line_of)
        if user_id in row_of:
            rows.append(row_of[user_id])
        elif unknown is Unknown.SKIP:
            n_skipped += 1
        else:
            raise _unknown(path, line, "user", user_id, published)
    return Users(published.user_ids, published.history, np.array(rows, np.int64), n_skipped)


def given_users(published: PublishedRecommender, path: Path, unknown: Unknown = Unknown.ERROR) -> Users:
    """Users whose sequences are in a file.

    Args:
        published: The recommender.
        path: JSON lines ``{"user_id": "…", "items": ["…", …]}``, oldest item first. Other members are ignored.
        unknown: What is done about items that the dataset does not have.

    Raises:
        DataError: The file cannot be read, a line is not of that form, or an identifier is unknown or there twice.
    """
    line_of: dict[str, int] = {}
    items: list[int] = []
    offsets, n_skipped = [0], 0
    for line, text in _lines(path):
        user_id, item_ids = _sequence(path, line, text)
        _refuse_second(path, line, user_id, line_of)
        for item_id in item_ids:
            item = published.item_idx.get(item_id)
            if item is not None:
                items.append(item)
            elif unknown is Unknown.SKIP:
                n_skipped += 1
            else:
                raise _unknown(path, line, "item", item_id, published)
        offsets.append(len(items))
    history = RaggedSequences(np.array(items, np.int32), np.array(offsets, np.int64))
    return Users(pa.array(list(line_of), pa.string()), history, np.arange(len(history)), n_skipped)


def allowed_items(
    published: PublishedRecommender, path: Path, unknown: Unknown = Unknown.ERROR
) -> tuple[NDArray[np.bool_], int]:
    """The items that may be recommended.

    Args:
        published: The recommender.
        path: File with an item's identifier on each line.
        unknown: What is done about identifiers that the dataset does not have.

    Returns:
        bool (N,), whether item i + 1 is in the file; and how many unknown ones were passed over.

    Raises:
        DataError: The file cannot be read, an identifier is unknown, or there is no known one.
    """
    allowed, n_skipped = np.zeros(len(published.item_ids), bool), 0
    for line, item_id in _lines(path):
        item = published.item_idx.get(item_id)
        if item is not None:
            allowed[item - 1] = True
        elif unknown is Unknown.SKIP:
            n_skipped += 1
        else:
            raise _unknown(path, line, "item", item_id, published)
    if not allowed.any():
        raise DataError(f"{path} holds no item of the dataset.", remedy="Write an item's identifier on each line.")
    return allowed, n_skipped


def recommend(
    published: PublishedRecommender,
    users: Users,
    n: int,
    *,
    seen: str = "mask",
    allowed: NDArray[np.bool_] | None = None,
    device: str = "cpu",
    threads: int = 2,
    progress: Progress = silent,
) -> Iterator[pa.Table]:
    """Recommend items to users.

    Args:
        published: The recommender.
        users: Whom to recommend to.
        n: Items per user; there are fewer where fewer may be recommended.
        seen: ``mask`` leaves a user's own items out, ``keep`` treats them as all others, ``weigh`` adds to their
            scores what validation said of repeats.
        allowed: bool (N,) whether item i + 1 may be recommended; None allows all.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads.
        progress: Told after every block of users.

    Yields:
        Tables of ``COLUMNS``, users in the order of ``users.rows``.

    Raises:
        SettingsError: ``n`` is below 1, the device is not there, or the snapshot lacks what ``weigh`` needs.
        ModelError: The weights do not fit the settings, or a score is not finite.
    """
    from p2rec_core.recommendation import recommendations
    from p2rec_core.recommender import recommender_scorer
    from p2rec_core.runtime import prepared_device

    if seen == "weigh" and published.repeat_bias is None:
        raise SettingsError(
            f"seen = 'weigh', but snapshot {published.snapshot.number} has no evaluation of slot {published.slot!r} "
            "that says how repeats weigh.",
            remedy=f"Evaluate it with `p2rec run -d {published.snapshot.dataset}`, or choose mask or keep.",
        )
    check_device(device)
    chosen = prepared_device(device, threads)
    scorer = recommender_scorer(
        _loaded(published, chosen), users.history, max_length=published.encoder().max_length, device=chosen
    )
    for group in recommendations(
        scorer,
        published.item_counts.astype(np.float32),
        n,
        rows=users.rows,
        seen=seen,
        bias=published.bias(),
        allowed=allowed,
        progress=progress,
    ):
        yield _table(group, users.user_ids, published.item_ids)


def _loaded(published: PublishedRecommender, device: Any) -> "Recommender":
    from p2rec_core.training.recommender import load_recommender

    return load_recommender(published.model.tensors("model"), published.encoder(), device)


def _table(found: "Recommendations", user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    row, place = np.nonzero(found.items)
    return pa.Table.from_arrays(
        [
            user_ids.take(pa.array(found.rows[row])),
            pa.array((place + 1).astype(np.int32)),
            item_ids.take(pa.array(found.items[row, place] - 1)),
            pa.array(found.scores[row, place]),
            _SOURCES.take(pa.array(found.by_model[row].astype(np.int8))),
        ],
        schema=COLUMNS,
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty.

    Identifiers may hold any character but a line feed, so that nothing else ends a line; a carriage return before it
    belongs to it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line, text in enumerate(file, start=1):
                text = text.removesuffix("\n").removesuffix("\r")
                if text:
                    yield line, text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy="Check the path; the text is UTF-8.") from error


def _sequence(path: Path, line: int, text: str) -> tuple[str, list[str]]:
    try:
        value = json.loads(text)
        user_id, items = value["user_id"], value["items"]
        if not (isinstance(user_id, str) and isinstance(items, list) and all(isinstance(i, str) for i in items)):
            raise TypeError("user_id is not text, or items is not a list of texts")
        user_id.encode()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}, line {line}: {text!r:.80} is not a user's sequence: {reason}.",
            remedy='Write {"user_id": "u1", "items": ["i1", "i2"]} on each line; identifiers are text.',
        ) from error
    return user_id, items


def _refuse_second(path: Path, line: int, user_id: str, line_of: dict[str, int]) -> None:
    if user_id in line_of:
        raise DataError(
            f"{path}, line {line}: the user {user_id!r:.80} is in line {line_of[user_id]} already.",
            remedy="Keep one line of the user.",
        )
    line_of[user_id] = line


def _unknown(path: Path, line: int, kind: str, value: str, published: PublishedRecommender) -> DataError:
    return DataError(
        f"{path}, line {line}: there is no {kind} {value!r:.80} in {published.snapshot.dataset!r}.",
        remedy="Correct the file, or pass over unknown identifiers with --unknown skip.",
    )
