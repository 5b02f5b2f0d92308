"""The interactions that both sides read, as RecBole's atomic file: a known data set, or a synthetic one of any size."""

import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.datasets import DIRECTORY_VARIABLE, known_dataset, locate
from storage.sample import generate_sample

NAME = "interactions"
"""What RecBole calls the data set: the name of its folder and of the file in it."""

DRAWN_USERS, DRAWN_ITEMS, DRAWN_CATEGORIES = 5000, 4000, 40

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


@dataclass(frozen=True)
class Interactions:
    """An atomic file and what is in it.

    Attributes:
        path: The file; RecBole's ``data_path`` is the folder above its folder.
        dataset: Name of the known data set that it was made of.
        title: What a reader calls it.
        n_users: Users.
        n_items: Items that one of them had.
        n_interactions: Rows.
        whole: Whether all users of the data set are there.
    """

    path: Path
    dataset: str
    title: str
    n_users: int
    n_items: int
    n_interactions: int
    whole: bool

    def facts(self) -> dict[str, Any]:
        """Everything but the path, for a report."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def datasets_directory() -> Path | None:
    """The user's directory of data sets; None where the environment names none."""
    value = os.environ.get(DIRECTORY_VARIABLE)
    return Path(value) if value else None


def drawn(folder: Path, n_interactions: int) -> Path:
    """Write synthetic interactions as an atomic file.

    Drawing takes longer than what is measured on them, so ``DRAWN_USERS`` users of the sample's generator are repeated
    under new names until there are enough.

    Args:
        folder: Where to put it.
        n_interactions: Rows at the least.
    """
    sample = generate_sample(n_users=DRAWN_USERS, n_items=DRAWN_ITEMS, n_categories=DRAWN_CATEGORIES)
    path = folder / f"drawn-{n_interactions}" / NAME / f"{NAME}.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    users = [
        (user, [f"{sample.item_ids[item]}\t{place}\n" for place, item in enumerate(items)])
        for user, items in zip(sample.user_ids, sample.sequences, strict=True)
    ]
    n_drawn = sum(len(rows) for _, rows in users)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(HEADER)
        for copy in range(math.ceil(n_interactions / n_drawn)):
            for user, rows in users:
                file.writelines(f"{user}-{copy}\t{row}" for row in rows)
    return path


def written(dataset: str, folder: Path, *, max_users: int | None = None) -> Interactions:
    """Write a known data set as an atomic file; an interaction's timestamp is its place in the user's sequence.

    Args:
        dataset: Name of a known data set; nothing is downloaded.
        folder: Where to put it, under ``dataset`` and the number of users.
        max_users: Users to keep, the first ones of the file; None keeps all.

    Raises:
        DataError: There is no such data set here, or its bytes are not the pinned ones.
    """
    known = known_dataset(dataset)
    with tempfile.TemporaryDirectory() as cache:
        source = locate(dataset, datasets_dir=datasets_directory(), cache_dir=Path(cache), fetch=None)
        lines = source.read_text(encoding="utf-8").splitlines()
    kept = [line.split() for line in lines[:max_users]]
    path = folder / f"{dataset}-{len(kept)}" / NAME / f"{NAME}.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(HEADER)
        for user, *items in kept:
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(items))
    return Interactions(
        path=path,
        dataset=dataset,
        title=known.title if len(kept) == len(lines) else f"{known.title}, first {len(kept):,} users",
        n_users=len(kept),
        n_items=len({item for _, *items in kept for item in items}),
        n_interactions=sum(len(row) - 1 for row in kept),
        whole=len(kept) == len(lines),
    )
