"""Data sets that are known by name: what they hold, where they come from, how their bytes are checked."""

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from p2rec_core.errors import DataError
from storage.ingest.source import sha256_of
from storage.ingest.statistics import Count, describe
from storage.sample import write_sample

__all__ = [
    "DATASETS",
    "DIRECTORY_VARIABLE",
    "Fetch",
    "KnownDataset",
    "Progress",
    "check_statistics",
    "describe",
    "http_fetch",
    "known_dataset",
    "locate",
    "locate_item_texts",
]

DIRECTORY_VARIABLE = "P2REC_DATASETS_DIR"
"""Environment variable that names the user's directory of data sets; the caller reads it."""

MAX_DOWNLOAD_BYTES = 64 << 20
TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 16

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and, where the server says, the bytes in all."""


class Fetch(Protocol):
    """How a download is made; ``http_fetch`` is the one for the network."""

    def __call__(self, url: str, target: Path, *, progress: Progress | None) -> None:
        """Save what lies at ``url`` as ``target``; raise DataError if that fails."""


@dataclass(frozen=True)
class KnownDataset:
    """A data set and its identity.

    Attributes:
        name: What a user writes.
        title: What a report shows.
        file: Name of its file in a directory of data sets.
        sha256: Digest of that file.
        url: Where its bytes, or those they are made of, lie in public; None where there is no download.
        origin_sha256: Digest of what lies at ``url``.
        origin_pairs: Whether that holds ``user item`` lines, which are joined by user to make ``file``.
        format: Format of ``file`` for ingest.
        n_users: Users (Table 1 of the paper), as the others.
        n_items: Items.
        n_interactions: Interactions.
        mean_length: Interactions of a user, as printed: one decimal.
        items_file: Name of the file with the items' text (item_id, title, …).
        text_columns: Its columns that describe an item in words.
        note: Origin, citation and terms.
        synthetic: Whether it was drawn by a program: its results say nothing about people.
    """

    name: str
    title: str
    file: str
    sha256: str
    url: str | None
    origin_sha256: str | None
    origin_pairs: bool
    format: str
    n_users: int
    n_items: int
    n_interactions: int
    mean_length: float
    items_file: str
    text_columns: tuple[str, ...]
    note: str
    synthetic: bool


_ICLREC = "https://raw.githubusercontent.com/salesforce/ICLRec/4afb54a036ebbf4166ed5858122d89c0642251a7/data"

DATASETS: Mapping[str, KnownDataset] = {
    known.name: known
    for known in (
        KnownDataset(
            name="beauty",
            title="Amazon Beauty",
            file="beauty.txt",
            sha256="226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
            url=f"{_ICLREC}/Beauty.txt",
            origin_sha256="226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
            origin_pairs=False,
            format="sequences",
            n_users=22_363,
            n_items=12_101,
            n_interactions=198_502,
            mean_length=8.9,
            items_file="beauty.items.tsv",
            text_columns=("terms",),
            note="Amazon reviews 2014, 5-core (McAuley et al., SIGIR 2015), as processed for S3-Rec (Zhou "
            "et al., CIKM 2020) and republished with ICLRec. For research, "
            "under the terms of the Amazon review data.",
            synthetic=False,
        ),
        KnownDataset(
            name="ml-1m",
            title="MovieLens-1M",
            file="ml-1m.txt",
            sha256="f939258a859d16e43055e80bf8f7d66aeae3805fa21cb1b999fbafa9c6c5694b",
            url="https://raw.githubusercontent.com/kang205/SASRec/master/data/ml-1m.txt",
            origin_sha256="b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2",
            origin_pairs=True,
            format="sequences",
            n_users=6_040,
            n_items=3_416,
            n_interactions=999_611,
            mean_length=165.5,
            items_file="ml-1m.items.tsv",
            text_columns=("title", "category"),
            note="MovieLens-1M (Harper and Konstan, TiiS 2015), items with 5 ratings and more, in the order "
            "of SASRec (Kang and McAuley, ICDM 2018). GroupLens forbids commercial use and redistribution "
            "without permission.",
            synthetic=False,
        ),
        KnownDataset(
            name="yelp",
            title="Yelp",
            file="yelp.txt",
            sha256="724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed",
            url=f"{_ICLREC}/Yelp.txt",
            origin_sha256="724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed",
            origin_pairs=False,
            format="sequences",
            n_users=30_431,
            n_items=20_033,
            n_interactions=316_354,
            mean_length=10.4,
            items_file="yelp.items.tsv",
            text_columns=("title", "category"),
            note="Yelp Open Dataset, reviews from 2019 on, 5-core, as processed for S3-Rec (Zhou et al., "
            "CIKM 2020) and republished with ICLRec. For academic use under Yelp's dataset agreement.",
            synthetic=False,
        ),
        KnownDataset(
            name="sample",
            title="Synthetic sample",
            file="sample.txt",
            sha256="e1ddb51cdb0fade8e22f8386e48cb9973c1ed2fc8656f8fa3b640182e2d0a14b",
            url=None,
            origin_sha256=None,
            origin_pairs=False,
            format="sequences",
            n_users=900,
            n_items=480,
            n_interactions=10_985,
            mean_length=12.2,
            items_file="sample.items.tsv",
            text_columns=("title", "category"),
            note="Drawn by storage.sample with known categories; no real user made it. Licensed as P2Rec.",
            synthetic=True,
        ),
    )
}
"""Every known data set by name."""


def known_dataset(name: str) -> KnownDataset:
    """Look a data set up.

    Args:
        name: Its name.

    Returns:
        Its entry.

    Raises:
        DataError: There is none of that name.
    """
    if name not in DATASETS:
        raise DataError(
            f"There is no data set {name!r}.",
            remedy=f"Choose one of {', '.join(DATASETS)}, or pass a file's path.",
        )
    return DATASETS[name]


def locate(
    name: str,
    *,
    datasets_dir: Path | None,
    cache_dir: Path,
    fetch: Fetch | None,
    progress: Progress | None = None,
) -> Path:
    """Find a known data set's file: in the user's directory, in the cache, or at its origin.

    The bytes are checked wherever they come from. The sample is drawn into the cache, its truth beside it,
    and never downloaded nor looked for in the user's directory.

    Args:
        name: Which.
        datasets_dir: The user's directory (value of ``DIRECTORY_VARIABLE``); None if there is none.
        cache_dir: Where downloads are kept; made if needed.
        fetch: How to download; None forbids it.
        progress: Told about the progress of a download.

    Returns:
        Path of a file whose digest is the pinned one.

    Raises:
        DataError: The name is unknown, the file is nowhere, the download fails or the digest is another.
    """
    known = known_dataset(name)
    if datasets_dir is not None and not known.synthetic and (datasets_dir / known.file).exists():
        path = datasets_dir / known.file
        _verify(
            path,
            known.sha256,
            remedy=f"Replace it, or pass the path of the file as data of your own: {path}.",
        )
        return path
    cached = cache_dir / known.file
    if cached.exists() and sha256_of(cached) == known.sha256:
        return cached
    if known.url is not None and fetch is None:
        raise _nowhere(known, datasets_dir, "downloads are switched off")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{known.name}-", suffix=".part", dir=cache_dir)
    except OSError as error:
        raise DataError(
            f"{cache_dir} cannot hold a download: {error}.", remedy="Choose another cache directory."
        ) from None
    part = Path(folder) / known.file
    try:
        if fetch is not None and known.url is not None:
            _download(known, part, datasets_dir, fetch, progress)
        else:
            drawn = write_sample(part.parent)
            for truth in (drawn["items"], drawn["users"]):
                truth.replace(cache_dir / truth.name)
        _verify(part, known.sha256, remedy="Report this: the pinned origin no longer makes the pinned file.")
        part.replace(cached)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return cached


def locate_item_texts(name: str, *, datasets_dir: Path | None, cache_dir: Path) -> Path | None:
    """Find the file of a known data set's item texts beside its interactions; None where there is none.

    Args:
        name: Which.
        datasets_dir: The user's directory; None if there is none.
        cache_dir: Where ``locate`` has put the sample.

    Raises:
        DataError: The name is unknown.
    """
    known = known_dataset(name)
    folder = cache_dir if known.synthetic else datasets_dir
    if folder is None:
        return None
    path = folder / known.items_file
    return path if path.exists() else None


def _download(
    known: KnownDataset, part: Path, datasets_dir: Path | None, fetch: Fetch, progress: Progress | None
) -> None:
    """Fetch the origin's bytes, check them and bring them into the form of ``known.file``."""
    url = known.url or ""
    try:
        fetch(url, part, progress=progress)
    except DataError as error:
        raise _nowhere(known, datasets_dir, error.problem) from None
    digest = sha256_of(part)
    if digest != known.origin_sha256:
        raise DataError(
            f"{url} has SHA-256 {digest}, expected {known.origin_sha256}; it begins with "
            f"{_beginning(part)!r}. It was not kept.",
            remedy=f"Put {known.file} into a directory and name that in {DIRECTORY_VARIABLE}.",
        )
    if known.origin_pairs:
        _join_pairs(part)


def _join_pairs(path: Path) -> None:
    """Turn ``user item`` lines into ``user item item …`` lines, in place; users in order of appearance."""
    sequences: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            user, item = line.split()
            sequences.setdefault(user, [user]).append(item)
    text = "".join(" ".join(tokens) + "\n" for tokens in sequences.values())
    path.write_text(text, encoding="utf-8", newline="\n")


def _nowhere(known: KnownDataset, datasets_dir: Path | None, why: str) -> DataError:
    looked = f"{DIRECTORY_VARIABLE} = {datasets_dir}" if datasets_dir else f"{DIRECTORY_VARIABLE} is not set"
    return DataError(
        f"The data set {known.name!r} is not here ({looked}) and did not come from {known.url}: {why.rstrip('.')}.",
        remedy=f"Put {known.file} into a directory and name that in {DIRECTORY_VARIABLE}, or allow and mend "
        "the download.",
    )


def _verify(path: Path, expected: str, *, remedy: str) -> None:
    digest = sha256_of(path)
    if digest != expected:
        raise DataError(f"{path} has SHA-256 {digest}, expected {expected}.", remedy=remedy)


def _beginning(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(60).decode("utf-8", "replace")


def http_fetch(
    url: str,
    target: Path,
    *,
    progress: Progress | None,
    timeout_s: float = TIMEOUT_S,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
) -> None:
    """Download over HTTP.

    Args:
        url: An ``http`` or ``https`` address.
        target: File to write.
        progress: Told about the progress.
        timeout_s: Longest wait for the next bytes.
        max_bytes: Largest download.

    Raises:
        DataError: The address is of another kind, cannot be reached, sends an error, more than
            ``max_bytes`` or fewer bytes than announced.
    """
    remedy = "Check the network and try again."
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no http or https address.", remedy="Use another address.")
    request = urllib.request.Request(url, headers={"User-Agent": "p2rec"})  # noqa: S310 - checked above
    done = 0
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer, target.open("wb") as file:  # noqa: S310
            announced = answer.headers.get("Content-Length", "")
            total = int(announced) if announced.isdigit() else None
            while chunk := answer.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > max_bytes:
                    raise DataError(f"{url} sends more than {max_bytes} bytes.", remedy="Use another address.")
                file.write(chunk)
                if progress is not None:
                    progress(done, total)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url} answers {error.code} {error.reason}.", remedy=remedy) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url} cannot be downloaded: {reason}.", remedy=remedy) from None
    if total is not None and done < total:
        raise DataError(f"{url} ended after {done} of {total} bytes.", remedy=remedy)
    if done == 0:
        raise DataError(f"{url} sends no bytes.", remedy=remedy)


def check_statistics(name: str, counts: Mapping[str, Count]) -> list[str]:
    """Compare what ingest counted with what is published.

    Args:
        name: A known data set.
        counts: ``n_users``, ``n_items``, ``n_interactions`` and ``length_mean`` as ``describe`` gives them.

    Returns:
        One sentence per difference; empty if all is as published.

    Raises:
        DataError: The name is unknown.
    """
    known = known_dataset(name)
    published: dict[str, Count] = {
        "n_users": known.n_users,
        "n_items": known.n_items,
        "n_interactions": known.n_interactions,
        "length_mean": known.mean_length,
    }
    found = {key: round(counts[key], 1) if key == "length_mean" else counts[key] for key in published}
    return [
        f"{known.title}: {key} is {found[key]}, published {value}."
        for key, value in published.items()
        if found[key] != value
    ]
