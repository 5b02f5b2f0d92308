"""``p2rec push`` and ``p2rec pull``."""

import json
import sys
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption
from flows.cli.terminal import StageBars
from p2rec_core.errors import SettingsError
from storage.artefacts import Store
from storage.remote import push as pushing
from storage.remote.bucket import Bucket
from storage.remote.pull import pull as pull_snapshot

BucketArgument = Annotated[
    str, Parameter(help="Address of the bucket: s3://, gs:// or az:// with a prefix, or file:// of a directory.")
]
_MIB = 2**20


def push(
    bucket: BucketArgument,
    /,
    *,
    dataset: DatasetOption = "sample",
    keep: Annotated[
        int | None, Parameter(name="--keep", help="Forget all but so many of the dataset's snapshots there.")
    ] = None,
    check: Annotated[
        bool, Parameter(name="--check", negative="", help="Read back what is there, and send again what is damaged.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Copy the current snapshot into a bucket, where it becomes the current one; what is there is not sent again.

    Keys, region and endpoint are taken from the environment, such as AWS_ACCESS_KEY_ID. Whoever reads the bucket
    meanwhile sees the snapshot of before. One store at a time may push a dataset to a bucket.

    Examples:
        p2rec push s3://models/p2rec -d beauty
        p2rec push s3://models/p2rec -d beauty --keep 7
        p2rec push file:///mnt/share/p2rec -d beauty --check
    """
    if keep is not None and keep < 1:
        raise SettingsError(f"--keep {keep} would keep no snapshot.", remedy="Keep 1 or more.")
    opened = Store.open(store, create=False)
    target = Bucket.open(bucket, create=True)
    with StageBars(enabled=not as_json) as bars:
        done = pushing.push(
            opened, target, dataset, check=check, told=lambda n, of, what: bars(f"push {dataset}", n, of, what)
        )
    gone, removed = ([], 0) if keep is None else pushing.forget(target, dataset, keep=keep)
    facts: dict[str, Any] = {"snapshot": done.snapshot.number, "before": done.before, "artefacts_sent": done.n_sent}
    facts |= {"artefacts_there": done.n_there, "bytes": done.n_bytes, "forgotten": gone, "artefacts_removed": removed}
    lines = [done.summary(target.address)]
    if keep is not None:
        lines.append(f"{len(gone)} snapshots forgotten, {removed} artefacts removed.")
    _print(facts, lines, as_json=as_json)


def pull(
    bucket: BucketArgument,
    /,
    *,
    dataset: DatasetOption = "sample",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Copy the current snapshot of a bucket into the store, where it becomes the current one.

    Every file is compared with its sha256 before it is taken; what is there already is not fetched again. A store
    that has published snapshots of the dataset itself does not take another one's.

    Examples:
        p2rec pull s3://models/p2rec -d beauty --store copy
        p2rec pull s3://models/p2rec -d beauty --store copy --json
    """
    source = Bucket.open(bucket)
    opened = Store.open(store)
    with StageBars(enabled=not as_json) as bars:
        done = pull_snapshot(opened, source, dataset, told=lambda n, of, what: bars(f"pull {dataset}", n, of, what))
    facts = {"snapshot": done.snapshot.number, "artefacts_fetched": done.n_fetched}
    facts |= {"artefacts_there": done.n_there, "bytes": done.n_bytes}
    lines = [
        f"Snapshot {done.snapshot.number} of {dataset} is the current one of {opened.root}.",
        f"{done.n_fetched} artefacts fetched ({done.n_bytes / _MIB:.1f} MiB), {done.n_there} were there.",
    ]
    _print(facts, lines, as_json=as_json)


def _print(facts: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    for line in lines:
        Console().print(line, highlight=False, soft_wrap=True, markup=False)
