"""The embedded sample: synthetic users whose tastes, and items whose categories, are known.

It exists so that everything runs without a download and so that tests have a right answer. Its numbers are
no results: no real user made these sequences.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MIN_LENGTH = 5
MAX_LENGTH = 40
SUCCESSORS = 3
_FOLLOW = (0.6, 0.3, 0.1)
"""Chance of each successor once a chain is followed."""
_P_FOLLOW = 0.5
"""Chance that the next item of a category is a successor of the last one there."""
_P_STAY = 0.8
"""Chance that the next item is of the same category."""
_HOME = 0.15
"""Part of a misplaced item's weight that stays in its own category."""
_ZIPF = 0.45

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Synthetic interactions and the truth behind them.

    Attributes:
        sequences: One int64 array per user of item rows (0…n_items - 1), oldest first, without repetition.
        user_ids: Text ids of the users.
        item_ids: Text ids of the items; they say nothing of the category.
        category: int64 (n_items): the true category of an item.
        host: int64 (n_items): the category in whose company an item mostly appears; the true one unless the
            item is misplaced.
        successors: int64 (n_items, SUCCESSORS): the items that tend to follow an item, likeliest first.
        taste_first: float64 (n_users, n_categories): a user's taste at the first interaction; rows sum to 1.
        taste_last: float64 (n_users, n_categories): the taste at the last one.
    """

    sequences: list[Ints]
    user_ids: list[str]
    item_ids: list[str]
    category: Ints
    host: Ints
    successors: Ints
    taste_first: Floats
    taste_last: Floats

    @property
    def misplaced(self) -> NDArray[np.bool_]:
        """Whether an item keeps the company of a category that is not its own: bool (n_items)."""
        moved: NDArray[np.bool_] = self.host != self.category
        return moved

    @property
    def taste(self) -> Floats:
        """Mean taste over a sequence: float64 (n_users, n_categories)."""
        return (self.taste_first + self.taste_last) / 2

    def text(self) -> str:
        """Write the interactions as ``user item item …`` lines."""
        lines = (
            " ".join([user, *(self.item_ids[item] for item in sequence)])
            for user, sequence in zip(self.user_ids, self.sequences, strict=True)
        )
        return "\n".join(lines) + "\n"


def generate_sample(
    *,
    n_users: int = 900,
    n_items: int = 480,
    n_categories: int = 12,
    seed: int = 7,
    misplaced: float = 0.04,
    mean_length: float = 12.0,
) -> Sample:
    """Draw a sample with known latent structure.

    A user wanders over one to four categories by a taste that drifts from a first to a last mixture. Within a
    category the next item is mostly one of the few successors of the last one there (a Markov chain), else it
    is drawn by popularity, which follows Zipf. Some items are misplaced: of one category by truth, but in the
    chains of another.

    Args:
        n_users: Users.
        n_items: Items.
        n_categories: Categories, at least five items each.
        seed: Everything is a function of it and the other arguments.
        misplaced: Part of the items, 0…1, that is misplaced.
        mean_length: Mean length of the sequences, about; lengths lie in MIN_LENGTH…MAX_LENGTH.

    Returns:
        Sequences and truth, equal for equal arguments on every run.

    Raises:
        ValueError: There are fewer than two categories or fewer than five items for each.
    """
    if n_categories < 2 or n_items < 5 * n_categories:
        raise ValueError(f"{n_categories} categories of {n_items} items: need 2 and 5 items in each")
    # Only uniform draws are used: their stream is the part of NumPy least likely to change.
    rng = np.random.Generator(np.random.PCG64(seed))
    category = np.argsort(rng.random(n_items), kind="stable") % n_categories
    moved = np.argsort(rng.random(n_items), kind="stable")[: round(misplaced * n_items)]
    host = category.copy()
    host[moved] = (category[moved] + 1 + _below(rng, n_categories - 1, len(moved))) % n_categories
    weights = _weights(rng, category, host, n_categories)
    successors = _successors(rng, host, weights)
    first, last = _tastes(rng, n_users, n_categories), np.empty((n_users, n_categories))
    for user in range(n_users):
        last[user] = 0.3 * first[user] + 0.7 * _drifted(rng, first[user])
    lengths = MIN_LENGTH - (mean_length - MIN_LENGTH) * np.log1p(-rng.random(n_users))
    sequences = [
        _walk(rng, min(int(length + 0.5), MAX_LENGTH), first[user], last[user], weights, successors)
        for user, length in enumerate(lengths)
    ]
    return Sample(
        sequences=sequences,
        user_ids=[f"u{user + 1:04d}" for user in range(n_users)],
        item_ids=[f"i{item + 1:04d}" for item in range(n_items)],
        category=category,
        host=host,
        successors=successors,
        taste_first=first,
        taste_last=last,
    )


def write_sample(folder: Path, sample: Sample | None = None) -> dict[str, Path]:
    """Write a sample and its truth as text.

    Args:
        folder: Where to; made if it is not there.
        sample: What to write; None is ``generate_sample()``.

    Returns:
        ``interactions``: ``sample.txt``, format ``sequences``. ``items``: ``sample.items.tsv`` with item_id,
        title, category, company (the category it mostly appears with). ``users``: ``sample.users.tsv`` with
        user_id and its mean taste, one column for each category.
    """
    sample = sample or generate_sample()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        "interactions": folder / "sample.txt",
        "items": folder / "sample.items.tsv",
        "users": folder / "sample.users.tsv",
    }
    items = ["item_id\ttitle\tcategory\tcompany"] + [
        f"{name}\tsynthetic item {name}\tcategory {own + 1}\tcategory {host + 1}"
        for name, own, host in zip(sample.item_ids, sample.category, sample.host, strict=True)
    ]
    n_categories = sample.taste.shape[1]
    users = ["\t".join(["user_id", *(f"category {c + 1}" for c in range(n_categories))])] + [
        "\t".join([name, *(f"{share:.6f}" for share in taste)])
        for name, taste in zip(sample.user_ids, sample.taste, strict=True)
    ]
    _write(paths["interactions"], sample.text())
    _write(paths["items"], "\n".join(items) + "\n")
    _write(paths["users"], "\n".join(users) + "\n")
    return paths


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _below(rng: np.random.Generator, bound: int, size: int) -> Ints:
    """Draw whole numbers 0…bound - 1."""
    return np.floor(rng.random(size) * bound).astype(np.int64)


def _draw(rng: np.random.Generator, weights: Floats) -> int:
    """Draw a position in proportion to its weight."""
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(weights) - 1)


def _weights(rng: np.random.Generator, category: Ints, host: Ints, n_categories: int) -> Floats:
    """Give items their popularity in every category: (n_categories, n_items)."""
    n_items = len(category)
    popularity = np.empty(n_items)
    for c in range(n_categories):
        members = np.flatnonzero(category == c)
        rank = np.argsort(np.argsort(rng.random(len(members)), kind="stable"), kind="stable")
        popularity[members] = (rank + 1.0) ** -_ZIPF
    weights = np.zeros((n_categories, n_items))
    home = np.where(host == category, 0.0, _HOME)
    weights[host, np.arange(n_items)] = popularity * (1 - home)
    weights[category, np.arange(n_items)] += popularity * home
    return weights


def _successors(rng: np.random.Generator, host: Ints, weights: Floats) -> Ints:
    """Draw the successors of every item in the category whose company it keeps: (n_items, SUCCESSORS)."""
    successors = np.empty((len(host), SUCCESSORS), dtype=np.int64)
    for item, c in enumerate(host):
        left = np.where(host == c, weights[c], 0.0)
        left[item] = 0.0
        for place in range(SUCCESSORS):
            successors[item, place] = _draw(rng, left)
            left[successors[item, place]] = 0.0
    return successors


def _tastes(rng: np.random.Generator, n_users: int, n_categories: int) -> Floats:
    """Draw mixtures over one to four categories: (n_users, n_categories), rows sum to 1."""
    tastes = np.zeros((n_users, n_categories))
    for user in range(n_users):
        n_liked = 1 + _draw(rng, np.array([0.2, 0.35, 0.3, 0.15]))
        liked = np.argsort(rng.random(n_categories), kind="stable")[: min(n_liked, n_categories)]
        shares = -np.log1p(-rng.random(len(liked))) + 0.1
        tastes[user, liked] = shares / shares.sum()
    return tastes


def _drifted(rng: np.random.Generator, taste: Floats) -> Floats:
    """Redraw the shares among the categories that a user likes."""
    liked = np.flatnonzero(taste)
    shares = -np.log1p(-rng.random(len(liked))) + 0.1
    drifted = np.zeros_like(taste)
    drifted[liked] = shares / shares.sum()
    return drifted


def _walk(
    rng: np.random.Generator, length: int, first: Floats, last: Floats, weights: Floats, successors: Ints
) -> Ints:
    """Draw one user's sequence."""
    fresh = np.ones(weights.shape[1])
    latest: dict[int, int] = {}
    here = -1
    sequence: list[int] = []
    for step in range(length):
        progress = step / (length - 1)
        if here < 0 or rng.random() >= _P_STAY:
            here = _draw(rng, (1 - progress) * first + progress * last)
        item = -1
        if here in latest and rng.random() < _P_FOLLOW:
            following = successors[latest[here]]
            chances = np.array(_FOLLOW) * fresh[following]
            if chances.sum() > 0:
                item = int(following[_draw(rng, chances)])
        if item < 0:
            left = weights[here] * fresh
            # A category whose items are all used up falls back on any other item.
            item = _draw(rng, left if left.sum() > 0 else fresh)
        fresh[item] = 0.0
        latest[here] = item
        sequence.append(item)
    return np.array(sequence, dtype=np.int64)
