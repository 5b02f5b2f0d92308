"""A trained recommender as a directory of plain files, and recommending from it: no store, no workflow engine.

    from p2rec_core.inference import Recommender

    recommender = Recommender.load("model")
    for item in recommender.recommend([["item 1", "item 7"]], n=10)[0]:
        print(item.item_id, item.score)

The directory holds

    config.json         the encoder's backbone and options, max_length, n_items, repeat_bias, where the model comes
                        from, size and sha256 of the two other files, and a digest of all this
    model.safetensors   ``item_vectors`` float32 (N, d); ``encoder.*``; ``item_counts`` int64 (N,), how many
                        interactions each item has; ``own_bias`` float32 (2,), if repeats were learned
    ids.txt             the owner's identifiers of the items, UTF-8, one a line; line i is row i of ``item_vectors``

A score is the inner product of an item's vector and the state that the encoder gives for a sequence's last item; to
that of the last item ``own_bias[0]`` is added, and ``own_bias[1]`` to those of the items before it that were read.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from p2rec_core.errors import DataError, ModelError
from p2rec_core.recommendation import NO_ITEM, recommendations
from p2rec_core.recommender import recommender_scorer
from p2rec_core.repeats import RepeatBias
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.recommender import OWN_BIAS, EncoderShape, load_recommender

CONFIG, MODEL, IDS = "config.json", "model.safetensors", "ids.txt"
_FORMAT, _VERSION = "p2rec-recommender", 2
_AGAIN = "Export the model again with `p2rec export`."


class Recommendation(NamedTuple):
    """One recommended item.

    Attributes:
        item_id: The owner's identifier.
        score: The model's score, or the number of the item's interactions where the source is popularity.
        source: ``model``; or ``popularity``, where no item of the sequence is known.
    """

    item_id: str
    score: float
    source: str


class Recommender:
    """A trained recommender that knows items by their owner's identifiers; ``load`` makes one."""

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        item_ids: Sequence[str],
        encoder: EncoderShape,
        repeat_bias: RepeatBias | None,
        device: torch.device,
    ) -> None:
        self.item_ids = tuple(item_ids)
        self.repeat_bias = repeat_bias
        self._item_idx = {item_id: item for item, item_id in enumerate(self.item_ids, start=1)}
        self._popularity = tensors["item_counts"].astype(np.float32)
        self._max_length = encoder.max_length
        self._device = device
        self._model = load_recommender(tensors, encoder, device)

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "cpu") -> Self:
        """Load what ``p2rec export SLOT --format model`` wrote.

        Args:
            directory: The directory.
            device: ``cpu`` or ``cuda``.

        Raises:
            ModelError: A file is missing or damaged, or this version of P2Rec does not read it.
        """
        directory = Path(directory)
        data = _read(directory / CONFIG)
        try:
            config = json.loads(data)
            if config["format_version"] == 1:
                raise ValueError("its format version is 1, which had no digest of its own")
            if config["digest"] != _digest(config) or _rendered(config) != data:
                raise ValueError(f"it is damaged: its digest should be {_digest(config)}")
            if (found := (config["format"], config["format_version"])) != (_FORMAT, _VERSION):
                raise ValueError(f"its format is {found!r:.80}, not {(_FORMAT, _VERSION)}")
            files = {name: _checked(directory / name, config["files"][name]["sha256"]) for name in (MODEL, IDS)}
            encoder = EncoderShape(config["encoder"]["backbone"], config["encoder"]["options"])
            bias = config["repeat_bias"]
            item_ids = files[IDS].decode().split("\n")[:-1]
            tensors = safetensors.numpy.load(files[MODEL])
            if not len(item_ids) == config["n_items"] == len(tensors["item_vectors"]) == len(tensors["item_counts"]):
                raise ValueError(f"its {config['n_items']} items are not those of {IDS} and {MODEL}")
            return cls(tensors, item_ids, encoder, None if bias is None else RepeatBias(**bias), torch.device(device))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ModelError(f"{directory / CONFIG} cannot be used: {error}.", remedy=_AGAIN) from error

    def recommend(
        self,
        sequences: Sequence[Sequence[str]],
        n: int = 10,
        *,
        seen: str = "mask",
        items: Collection[str] | None = None,
        skip_unknown: bool = False,
    ) -> list[list[Recommendation]]:
        """Recommend items to follow sequences.

        Args:
            sequences: Identifiers of items, oldest first; an empty one gets the most popular items.
            n: Items per sequence; there are fewer where fewer may be recommended.
            seen: What is done with the sequence's own items: ``mask`` leaves them out, ``keep`` treats them as all
                others, ``weigh`` adds to their scores what the model's validation says of repeats.
            items: Only these are recommended; None allows all.
            skip_unknown: Whether identifiers that the model does not know are passed over instead of an error.

        Returns:
            One list per sequence, the best item first.

        Raises:
            DataError: An identifier is unknown.
            SettingsError: ``n`` is below 1, there is no such policy, or the model was exported without what
                ``weigh`` needs.
            ModelError: A score is not finite.
        """
        rows = [self._indices(sequence, f"Sequence {place}", skip_unknown) for place, sequence in enumerate(sequences)]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        history = RaggedSequences(np.array([item for row in rows for item in row], np.int32), offsets)
        allowed = None
        if items is not None:
            allowed = np.zeros(len(self.item_ids), bool)
            allowed[np.array(self._indices(items, "The list of allowed items", skip_unknown), np.int64) - 1] = True
        scorer = recommender_scorer(self._model, history, max_length=self._max_length, device=self._device)
        answers: list[list[Recommendation]] = []
        for group in recommendations(
            scorer,
            self._popularity,
            n,
            rows=np.arange(len(history)),
            seen=seen,
            bias=self.repeat_bias,
            allowed=allowed,
        ):
            for of_user, scores, by_model in zip(group.items, group.scores, group.by_model, strict=True):
                source = "model" if by_model else "popularity"
                answers.append(
                    [
                        Recommendation(self.item_ids[item - 1], float(score), source)
                        for item, score in zip(of_user, scores, strict=True)
                        if item != NO_ITEM
                    ]
                )
        return answers

    def _indices(self, item_ids: Collection[str], place: str, skip_unknown: bool) -> list[int]:
        found = []
        for item_id in item_ids:
            item = self._item_idx.get(item_id)
            if item is not None:
                found.append(item)
            elif not skip_unknown:
                raise DataError(
                    f"{place} holds the item {item_id!r:.80}, which the model does not know.",
                    remedy="Leave it out, or pass skip_unknown=True.",
                )
        return found


def recommender_files(
    tensors: Mapping[str, NDArray[np.float32]],
    item_ids: Sequence[str],
    item_counts: NDArray[np.int64],
    encoder: EncoderShape,
    *,
    repeat_bias: RepeatBias | None,
    source: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of a directory that ``Recommender.load`` reads.

    Args:
        tensors: What ``TrainedRecommender.tensors`` was; the parts that the item table was made of are left out.
        item_ids: The owner's identifiers, N of them, without line feeds.
        item_counts: int64 (N,) interactions of each item.
        encoder: The encoder's shape.
        repeat_bias: What ``weigh`` adds, None where it was not fitted.
        source: Where the model comes from, JSON values.

    Returns:
        Content by file name.
    """
    kept = {
        name: np.ascontiguousarray(array)
        for name, array in tensors.items()
        if name in {"item_vectors", OWN_BIAS} or name.startswith("encoder.")
    }
    files = {
        MODEL: safetensors.numpy.save(kept | {"item_counts": item_counts}),
        IDS: "".join(f"{item_id}\n" for item_id in item_ids).encode(),
    }
    config = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "encoder": {"backbone": encoder.backbone, "options": dict(encoder.options)},
        "max_length": encoder.max_length,
        "n_items": len(item_ids),
        "repeat_bias": None if repeat_bias is None else {"last": repeat_bias.last, "earlier": repeat_bias.earlier},
        "source": dict(source),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }
    return files | {CONFIG: _rendered(config | {"digest": _digest(config)})}


def _digest(config: Mapping[str, Any]) -> str:
    """sha256 in hex over all of the configuration but its digest."""
    rest = {name: value for name, value in config.items() if name != "digest"}
    return hashlib.sha256(_rendered(rest)).hexdigest()


def _rendered(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}.",
            remedy="Pass the directory that `p2rec export SLOT --format model` wrote.",
        ) from error


def _checked(path: Path, sha256: str) -> bytes:
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelError(f"{path} is damaged: expected sha256 {sha256}, found {found}.", remedy=_AGAIN)
    return data
