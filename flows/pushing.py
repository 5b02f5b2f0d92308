"""Copying the snapshot of a run into the bucket that its settings name."""

import dataclasses

from flows.report import RunReport
from p2rec_core.errors import StoreError
from p2rec_core.settings.pipeline import RuntimeSettings
from storage.artefacts import Store
from storage.remote.bucket import Bucket
from storage.remote.push import forget, push


def check_bucket(runtime: RuntimeSettings) -> None:
    """Refuse a bucket that cannot be used before anything is computed; nothing is asked of it.

    Raises:
        ExtraMissing: The package that talks to buckets is not installed.
        StoreError: It is not the address of a bucket.
    """
    if runtime.push_to is not None:
        Bucket.open(runtime.push_to, create=True)


def push_if_asked(report: RunReport, store: Store, runtime: RuntimeSettings) -> RunReport:
    """Copy the current snapshot to ``runtime.push_to``; the report says so.

    A bucket that has it already is only looked at, so a run that has nothing to compute makes good what an earlier one
    could not push.

    Raises:
        StoreError: It cannot be copied; it is the store's current one all the same.
    """
    if runtime.push_to is None:
        return report
    try:
        bucket = Bucket.open(runtime.push_to, create=True)
        pushed = push(store, bucket, report.dataset)
        if runtime.push_keep is not None:
            forget(bucket, report.dataset, keep=runtime.push_keep)
    except StoreError as error:
        raise type(error)(
            f"Snapshot {report.snapshot} of '{report.dataset}' is the current one of {store.root}, but was not pushed "
            f"to {runtime.push_to}: {error.problem}",
            remedy=f"{error.remedy} Then `p2rec push {runtime.push_to} -d {report.dataset}`.",
        ) from error
    return dataclasses.replace(report, pushed=pushed.summary(bucket.address))
