"""Other content under the same key: a forced recomputation breaks nothing that refers to what was there before."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing
from storage.artefacts import Artefact, InputRef, Store
from storage.doctor import examine
from storage.garbage import Kind, collect
from storage.snapshots import promote, publish_snapshot, read_snapshot
from tests.storage.test_state_machine import STEPS, killed_at

NOW = timedelta(0)
Force = Callable[..., Artefact]


@pytest.fixture
def force(store: Store) -> Force:
    """Compute the same key to some content, as ``--force`` does."""

    def force(content: int, *, store: Store = store) -> Artefact:
        with (
            store.lock("s", "k"),
            store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer,
        ):
            writer.json("same", {})
            writer.json("value", {"content": content})
            return writer.publish({}, 1.0, replace=True)

    return force


def value(store: Store, number: int | None = None) -> int:
    """The content that a snapshot means, every byte compared."""
    artefact = store.load(read_snapshot(store, "tiny", number).entries["s"])
    store.verify(artefact)
    return int(artefact.json("value")["content"])


def removed(store: Store, **kwargs: object) -> set[str]:
    report = collect(store, **kwargs)  # type: ignore[arg-type]
    return {item.name for item in report.removed if item.kind is Kind.ARTEFACT}


def test_snapshots_keep_what_they_mean_when_a_forced_recomputation_gives_other_content(
    store: Store, force: Force
) -> None:
    for content in (1, 2, 3):
        publish_snapshot(store, "tiny", {"s": force(content).ref()}, {})
    assert [value(store, number) for number in (1, 2, 3)] == [1, 2, 3]
    assert not examine(store).findings
    promote(store, "tiny", 1)
    assert value(store) == 1
    newest = store.find("s", "k")
    assert newest is not None
    assert newest.json("value") == {"content": 3}  # a new run finds what was computed last
    assert [artefact.path.name for artefact in store.artefacts()] == ["k"]
    assert not list((store.root / "quarantine").iterdir())


def test_content_that_comes_back_is_found_wherever_it_is(store: Store, force: Force) -> None:
    refs = {content: force(content).ref() for content in (1, 2)}
    for content in (1, 2, 1, 1, 2):
        assert force(content).path == store.place("s", "k")
        for each, ref in refs.items():
            found = store.load(ref)
            store.verify(found)
            assert found.json("value") == {"content": each}
    (store.variant_place(refs[2]) / "value.json").write_bytes(b"{}\n")
    force(1)  # what makes way takes the place of a damaged copy of itself
    assert store.load(refs[2]).json("value") == {"content": 2}


def test_content_that_is_nowhere_is_missing_or_told_as_other_content(store: Store, force: Force) -> None:
    gone, there = force(1).ref(), force(2).ref()
    shutil.rmtree(store.variant_place(gone))
    with pytest.raises(ArtefactDamaged, match="The file 'value' of artefact s/k is not the one referred to"):
        store.load(gone)
    (store.place("s", "k") / "manifest.json").write_bytes(b"{}\n")
    with pytest.raises(ArtefactDamaged, match=r"k/manifest\.json is damaged"):
        store.load(there)
    shutil.rmtree(store.place("s", "k"))
    with pytest.raises(ArtefactMissing, match="There is no artefact s/k"):
        store.load(there)


def test_killed_at_every_step_a_forced_recomputation_breaks_no_snapshot(store: Store, force: Force) -> None:
    ref = force(1).ref()
    publish_snapshot(store, "tiny", {"s": ref}, {})
    real, ended = {name: getattr(os, name) for name in STEPS}, []
    without_key = 0
    for step in range(1, 100):
        copy = Store.open(shutil.copytree(store.root, store.root.parent / "copies" / str(step)))
        with killed_at(step):
            force(2, store=copy)
            ended.append(step)
        assert {name: getattr(os, name) for name in STEPS} == real
        assert value(copy) == 1
        assert not examine(copy).harm
        without_key += copy.find("s", "k") is None
        assert force(2, store=copy).json("value") == {"content": 2}
        assert value(copy) == 1
        if ended:
            break
    assert ended
    assert without_key  # between the two renames


def test_a_variant_stays_as_long_as_something_refers_to_its_content(store: Store, force: Force) -> None:
    refs = {}
    for content in (1, 2, 3):
        refs[content] = force(content).ref()
        if content != 2:
            publish_snapshot(store, "tiny", {"s": refs[content]}, {})
    assert removed(store) == set()  # what made way is as young as new
    assert removed(store, grace=NOW) == {f"artefacts/s/{refs[2].variant}"}
    promote(store, "tiny", 1)
    assert removed(store, grace=NOW, keep_last=1) == set()
    promote(store, "tiny", 2)
    assert removed(store, grace=NOW, keep_last=1) == {f"artefacts/s/{refs[1].variant}"}
    assert value(store) == 3


@pytest.mark.parametrize("by", ["a snapshot", "an experiment"])
def test_the_variant_that_something_was_computed_from_stays(store: Store, force: Force, by: str) -> None:
    first = force(1)
    with store.write("above", "a", settings={}, inputs={"v": first.input("value")}, fingerprint="f") as writer:
        writer.json("value", {})
        above = writer.publish({}, 1.0)
    kept = {}
    if by == "a snapshot":
        publish_snapshot(store, "tiny", {"above": above.ref()}, {})
    else:
        kept = {"experiment e": [above.ref()]}
    for content in (2, 3):
        force(content)
    found = store.find_input(above.manifest.inputs["v"])
    assert found is not None
    assert found.json("value") == {"content": 1}
    assert store.find_input(InputRef("s", "k", "value", "0" * 64)) is None
    gone = removed(store, grace=NOW, references=lambda: kept)
    assert len(gone) == 1
    assert store.find_input(above.manifest.inputs["v"]) == found


def test_content_that_makes_way_while_garbage_is_judged_stays(store: Store, force: Force) -> None:
    first = force(1)
    with store.write("above", "a", settings={}, inputs={"v": first.input("value")}, fingerprint="f") as writer:
        writer.json("value", {})
        above = writer.publish({}, 1.0)
    publish_snapshot(store, "tiny", {"above": above.ref()}, {})
    (store.root / "artefacts" / "r" / "unwanted").mkdir(parents=True)  # judged after references are known and before k

    class Forced(Store):
        def lock(self, stage: str, key: str, **kwargs: Any) -> AbstractContextManager[None]:
            if (stage, key) == ("r", "unwanted"):
                force(2)
            return super().lock(stage, key, **kwargs)

    assert removed(Forced(store.root), grace=NOW) == {"artefacts/r/unwanted"}
    found = store.find_input(above.manifest.inputs["v"])
    assert found is not None
    assert found.path.name == first.ref().variant


def test_the_doctor_looks_at_variants_too(store: Store, force: Force) -> None:
    first = force(1).ref()
    publish_snapshot(store, "tiny", {"s": first}, {})
    force(2)
    place = store.variant_place(first)
    (place / "value.json").write_bytes(b"{}\n")
    (finding,) = examine(store).harm
    assert (finding.name, finding.problem.startswith(f"The file {place / 'value.json'} is damaged")) == (
        f"artefacts/s/{first.variant}",
        True,
    )
    assert finding.remedy == "Set it aside with `--repair`; a snapshot that refers to it is found incomplete then."
    report = examine(store, repair=True)
    mended = {finding.name: finding.mended for finding in report.findings}
    assert mended[f"artefacts/s/{first.variant}"] == f"set aside in {store.root / 'quarantine' / 's-k-1'}"
    assert "is not complete, slot s: The file 'value' of artefact s/k" in report.harm[0].problem
    other = force(3).ref()
    force(4)
    store.variant_place(other).rename(place)
    assert f"The manifest in {place} is that of {other.variant}" in examine(store).harm[0].problem


def test_a_variant_that_leads_out_of_the_store_is_refused(store: Store, force: Force, tmp_path: Path) -> None:
    first = force(1).ref()
    force(2)
    shutil.move(store.variant_place(first), tmp_path / "outside")
    (store.root / "artefacts" / "s" / first.variant).symlink_to(tmp_path / "outside")
    for look in (lambda: store.load(first), lambda: list(store.contents("s", "k"))):
        with pytest.raises(Exception, match="leads out of the store"):
            look()
