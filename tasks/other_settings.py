"""Which settings are not those of a snapshot, by their full names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2rec_core.settings.language import LanguageModelSettings
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


def _full_name(stage: str, name: str) -> str:
    """The dotted name of a setting that a stage reads under a name of its own."""
    if stage == "recommender" and name.startswith("fusion."):
        return name
    if stage in ("text", "finetune", "knowledge") and name in LanguageModelSettings.model_fields:
        return f"language_model.{name}"
    return f"{_SHARED.get(stage, stage)}.{name}"
