"""What a run would do, without doing it: which slots are cached, which are not, and why."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from p2rec_core.errors import ArtefactDamaged
from storage.artefacts import Artefact, ArtefactRef, Store
from tasks.dag import Slot
from tasks.other_settings import differences
from tasks.stage import StageCall, whole_artefact


@dataclass(frozen=True)
class PlannedSlot:
    """What would happen to a slot.

    Attributes:
        slot: The slot.
        key: Key of its artefact; None where that depends on a slot that is to be computed first.
        artefact: The artefact, where it is in the store.
        reason: Why it would be computed; empty where it is cached.
        wall_s: Seconds spent on looking, verification included.
    """

    slot: Slot
    key: str | None
    artefact: Artefact | None
    reason: str
    wall_s: float = 0.0

    @property
    def cached(self) -> bool:
        """Whether a run would only verify it."""
        return self.artefact is not None and not self.reason


def plan(slots: list[Slot], store: Store, previous: Mapping[str, ArtefactRef]) -> Iterator[PlannedSlot]:
    """Walk the pipeline as a run would.

    Args:
        slots: The pipeline, in order.
        store: Where artefacts are.
        previous: The slots of the present snapshot, to say what has changed since.

    Raises:
        P2RecError: A source file or a language model cannot be found.
    """
    refs: dict[str, ArtefactRef] = {}
    for slot in slots:
        missing = [need for need in slot.needs if need not in refs]
        if missing:
            yield PlannedSlot(slot, None, None, f"waits for {', '.join(missing)}")
            continue
        begun = time.monotonic()
        call = slot.call(refs)
        key = call.key()
        artefact, damage = whole_artefact(call.stage, key, store)
        if damage is not None:
            yield PlannedSlot(slot, key, None, f"it is damaged: {damage.problem}")
            continue
        if artefact is None:
            yield PlannedSlot(slot, key, None, _what_changed(call, store, previous.get(slot.name)))
            continue
        refs[slot.name] = artefact.ref()
        yield PlannedSlot(slot, key, artefact, "", time.monotonic() - begun)


def _what_changed(call: StageCall, store: Store, previous: ArtefactRef | None) -> str:
    if previous is None:
        return "it was never computed"
    try:
        before = store.find(previous.stage, previous.key)
    except ArtefactDamaged:
        return "the one before is damaged"
    if before is None:
        return "its artefact was deleted"
    manifest = before.manifest
    changes = [f"{name} {was!r} → {now!r}" for name, was, now in differences(manifest.settings, call.settings)]
    inputs = {name: ref.sha256 for name, ref in manifest.inputs.items()}
    now = {name: ref.sha256 for name, ref in call.input_refs().items()}
    changes += [f"{n} has other content" for n in sorted(inputs.keys() & now.keys()) if inputs[n] != now[n]]
    changes += [f"it reads {n} now" for n in sorted(now.keys() - inputs.keys())]
    changes += [f"it no longer reads {n}" for n in sorted(inputs.keys() - now.keys())]
    if manifest.fingerprint != call.fingerprint():
        changes.append("the code that computes it")
    return "changed: " + "; ".join(changes) if changes else "its artefact was deleted"
