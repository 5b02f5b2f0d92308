"""Garbage collection as a flow, so that a service that refreshes every night keeps its disk by a schedule too."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import Field

from storage.artefacts import DEFAULT_STORE, Store
from storage.garbage import DEFAULT_GRACE, GarbageReport, collect
from tasks.progress import shown_if_possible
from tasks.references import experiment_references

_SHOWN = 200
_MIB = 2**20
_GRACE_DAYS = DEFAULT_GRACE / timedelta(days=1)


@flow(name="gc", persist_result=False)
def gc(
    keep_last: Annotated[int | None, Field(ge=1)] = None,
    grace_days: Annotated[float, Field(ge=0, le=36_500)] = _GRACE_DAYS,
    dry_run: bool = False,
    store: Path = DEFAULT_STORE,
) -> dict[str, Any]:
    """Remove artefacts that no snapshot and no experiment needs, leftovers of crashes, and what was set aside.

    It is safe beside other runs, as long as the grace period is longer than any of them takes.

    Args:
        keep_last: Snapshots of each dataset that stay, beside the current one, the pinned and as many that were refused
            after the current one; left empty, all.
        grace_days: What is younger stays.
        dry_run: Change nothing; say what would be removed.
        store: Directory of the artefact store.

    Returns:
        ``dry_run``, ``n_removed`` and ``n_bytes_freed``.

    Raises:
        StoreError: What a snapshot or an experiment refers to cannot be told; then nothing was removed.
    """
    opened = Store.open(store, create=False)
    report = collect(
        opened,
        grace=timedelta(days=grace_days),
        keep_last=keep_last,
        references=lambda: experiment_references(opened),
        dry_run=dry_run,
    )
    told = f"{report.summary}; {len(report.kept)} kept."
    get_run_logger().info("%s", told)
    if report.removed:
        with shown_if_possible("what was removed"):
            create_table_artifact(_rows(report), key="garbage", description=told)
    return {"dry_run": dry_run, "n_removed": len(report.removed), "n_bytes_freed": report.n_bytes_freed}


def _rows(report: GarbageReport) -> list[dict[str, Any]]:
    return [
        {"what": str(item.kind), "name": item.name, "why": item.reason, "MiB": round(item.n_bytes / _MIB, 2)}
        for item in sorted(report.removed, key=lambda item: -item.n_bytes)[:_SHOWN]
    ]
