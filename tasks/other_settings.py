"""The settings of a snapshot, and which of others are not those, by their full names."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2rec_core.errors import ModelError
from p2rec_core.settings.experiment import flattened
from p2rec_core.settings.language import LanguageModelSettings
from p2rec_core.settings.pipeline import PipelineSettings, describe_settings
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import Store
from storage.snapshots import Snapshot
from tasks.dag import Slot

_SHARED = {"text": "finetune", "knowledge": "finetune"}
"""Stages that read settings of another's section."""


@dataclass(frozen=True)
class OtherSetting:
    """A setting that is not a snapshot's.

    Attributes:
        name: Its dotted name.
        before: The snapshot's value.
        now: The value that is compared with it.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        before, now = (json.dumps(value, ensure_ascii=False) for value in (self.before, self.now))
        return f"{self.name} {before} → {now}"

    def assignment(self) -> str:
        """The snapshot's value as ``--set`` takes it."""
        return f"{self.name}={json.dumps(self.before, ensure_ascii=False)}"


def differences(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value before and value now of whatever is not equal in two nested mappings; None is not there."""
    if isinstance(before, Mapping) or isinstance(now, Mapping):
        was = before if isinstance(before, Mapping) else {}
        is_now = now if isinstance(now, Mapping) else {}
        for name in sorted(was.keys() | is_now.keys()):
            yield from differences(was.get(name), is_now.get(name), f"{prefix}{name}.")
    elif before != now:
        yield prefix.rstrip("."), before, now


def other_settings(slots: Sequence[Slot], snapshot: Snapshot, store: Store) -> list[OtherSetting]:
    """Settings of a pipeline that are not those of a snapshot, where both have the slot that reads them.

    Args:
        slots: The pipeline.
        snapshot: The snapshot.
        store: Where its artefacts are.

    Raises:
        P2RecError: An artefact of it, a source file or a language model is missing or damaged.
    """
    found: dict[str, OtherSetting] = {}
    for slot in slots:
        ref = snapshot.entries.get(slot.name)
        if ref is None or slot.stage == "evaluation" or any(need not in snapshot.entries for need in slot.needs):
            continue
        read = slot.call(snapshot.entries).settings
        before = {name: value for name, value in store.load(ref).manifest.settings.items() if name in read}
        for name, was, now in differences(before, read):
            other = OtherSetting(_full_name(slot.stage, name), was, now)
            found.setdefault(other.name, other)
    return list(found.values())


def settings_of(snapshot: Snapshot, store: Store) -> dict[str, Any]:
    """The settings that a snapshot was computed with, by dotted name, as JSON values; not those that no stage reads.

    Args:
        snapshot: The snapshot.
        store: Where its artefacts are.

    Raises:
        P2RecError: An artefact of it is missing or damaged.
    """
    known = {name for name, _, _ in describe_settings(PipelineSettings())}
    found: dict[str, Any] = {}
    for slot, ref in snapshot.entries.items():
        stage = slot.split(".")[0]
        manifest = store.load(ref).manifest
        read = {_full_name(stage, name): value for name, value in flattened(manifest.settings).items()}
        found |= {name: value for name, value in read.items() if name in known}
        if stage in ("finetune", "knowledge"):
            found["language_model.item_text"] = "texts" in manifest.inputs
    trained = {slot.split(".")[-1] for slot in snapshot.entries if slot.startswith("evaluation.")}
    return found | {"variants": [str(variant) for variant in Variant if variant in trained]}


def language_model_name(snapshot: Snapshot, store: Store, candidates: Iterable[str]) -> str | None:
    """The one of several language models that a snapshot was computed with, or else a built-in one; None if that is
    not on this machine under such a name, or none was used.

    Args:
        snapshot: The snapshot.
        store: Where its artefacts are.
        candidates: Names or directories.

    Raises:
        P2RecError: An artefact of the snapshot is missing or damaged.
    """
    from p2rec_core.language.identity import BUILT_IN_NAMES, model_identity

    for ref in snapshot.entries.values():
        manifest = store.load(ref).manifest
        if "language-model" not in manifest.inputs:
            continue
        seed = manifest.settings.get("seed")
        for name in (*candidates, *BUILT_IN_NAMES):
            with contextlib.suppress(ModelError):  # it is not on this machine
                if model_identity(name, seed=seed) == manifest.inputs["language-model"].sha256:
                    return name
        return None
    return None


def _full_name(stage: str, name: str) -> str:
    """The dotted name of a setting that a stage reads under a name of its own."""
    if stage == "recommender" and name.startswith("fusion."):
        return name
    if stage in ("text", "finetune", "knowledge") and name in LanguageModelSettings.model_fields:
        return f"language_model.{name}"
    return f"{_SHARED.get(stage, stage)}.{name}"
