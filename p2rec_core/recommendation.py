"""Recommending: the best items of users, the nearest items of items, and what users get of whom nothing is known.

Items are 1 … N. Among equal scores the lower item comes first, so that a list is a function of the scores alone; the
scores themselves may differ in their last bits with the device, the number of threads and the users of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2rec_core.errors import ModelError, SettingsError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import SCORED_ROWS, Scorer
from p2rec_core.repeats import RepeatBias, add_repeat_bias

NO_ITEM = 0
"""Fills a list where fewer items than asked for may be recommended."""

GROUP_ENTRIES = 1 << 18
"""Recommended items that ``recommendations`` holds at once; changes memory, and scores in their last bits at most."""


@dataclass(frozen=True)
class Recommendations:
    """The best items of some users.

    Attributes:
        rows: int64 (B,) rows of the histories.
        items: int32 (B, n) items, the best first; NO_ITEM where fewer may be recommended.
        scores: float32 (B, n); -inf where there is no item.
        by_model: bool (B,) whether the model scored the items; otherwise nothing is known of the user, and the score
            is the item's popularity.
    """

    rows: NDArray[np.int64]
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    by_model: NDArray[np.bool_]


def recommendations(
    scorer: Scorer,
    popularity: NDArray[np.float32],
    n: int,
    *,
    rows: NDArray[np.int64],
    seen: str = "mask",
    bias: RepeatBias | None = None,
    allowed: NDArray[np.bool_] | None = None,
    progress: Progress = silent,
) -> Iterator[Recommendations]:
    """Recommend ``n`` items to each user: the best by score, and the most popular to users without any known item.

    Args:
        scorer: Scores the users.
        popularity: float32 (N,) how popular each item is.
        n: Items per user.
        rows: int64 (B,) rows of ``scorer.history`` to recommend to.
        seen: One of ``metrics.SEEN_POLICIES``, see ``top_items``.
        bias: What ``weigh`` adds to the scores of a user's own items.
        allowed: bool (N,) whether item i + 1 may be recommended; None allows all.
        progress: Told after every block of users.

    Yields:
        The users in the order of ``rows``, a group at a time.

    Raises:
        SettingsError: ``n`` is below 1, there is no such policy, or ``weigh`` has no bias.
        ModelError: A score is not finite.
    """
    _check(n, seen, bias)
    common = torch.from_numpy(popularity.copy())[None]
    if allowed is not None:
        common.masked_fill_(torch.from_numpy(~allowed), -torch.inf)
    popular_items, popular_scores = _best(common, n)
    group = max(SCORED_ROWS, GROUP_ENTRIES // n)
    known = scorer.history.lengths_of(rows) > 0
    for start in range(0, len(rows), group):
        of_group, by_model = rows[start : start + group], known[start : start + group]

        def told(done: int, total: int, message: str, *, before: int = start) -> None:
            progress(before + done, len(rows), f"{before + done} of {len(rows)} users")

        items = np.tile(popular_items, (len(of_group), 1))
        scores = np.tile(popular_scores, (len(of_group), 1))
        items[by_model], scores[by_model] = top_items(
            scorer, n, rows=of_group[by_model], seen=seen, bias=bias, allowed=allowed, progress=told
        )
        yield Recommendations(of_group, items, scores, by_model)


def top_items(
    scorer: Scorer,
    n: int,
    *,
    rows: NDArray[np.int64],
    seen: str = "mask",
    bias: RepeatBias | None = None,
    allowed: NDArray[np.bool_] | None = None,
    progress: Progress = silent,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The ``n`` best items of users, ``SCORED_ROWS`` users at a time.

    Args:
        scorer: Scores the users.
        n: Items per user.
        rows: int64 (B,) rows of ``scorer.history``.
        seen: What is done with the items of a user's history: ``mask`` leaves them out, ``keep`` treats them as all
            others, ``weigh`` adds ``bias`` to their scores.
        bias: Needed by ``weigh``.
        allowed: bool (N,) whether item i + 1 may be recommended; None allows all.
        progress: Told after every block of users.

    Returns:
        int32 (B, n) items, the best first and the lower one first where scores are equal, NO_ITEM where fewer may be
        recommended; and their float32 (B, n) scores, -inf there.

    Raises:
        SettingsError: ``n`` is below 1, there is no such policy, or ``weigh`` has no bias.
        ModelError: A score is not finite.
    """
    _check(n, seen, bias)
    items = np.full((len(rows), n), NO_ITEM, np.int32)
    best = np.full((len(rows), n), -np.inf, np.float32)
    # users of like length together: less padding to compute
    by_length = np.argsort(scorer.lengths[rows], kind="stable")
    for start in range(0, len(rows), SCORED_ROWS):
        places = by_length[start : start + SCORED_ROWS]
        block = rows[places]
        scores = scorer.score(block)
        if not torch.isfinite(scores.sum()):
            raise ModelError(
                "The model gives scores that are not finite numbers.",
                remedy="Train it again, with a lower learning rate.",
            )
        if seen == "weigh" and bias is not None:
            add_repeat_bias(scores, scorer.history, block, bias)
        elif seen == "mask":
            row, item = scorer.history.coordinates(block)
            scores[torch.from_numpy(row).to(scores.device), torch.from_numpy(item - 1).to(scores.device)] = -torch.inf
        if allowed is not None:
            scores.masked_fill_(torch.from_numpy(~allowed).to(scores.device), -torch.inf)
        items[places], best[places] = _best(scores, n)
        done = start + len(places)
        progress(done, len(rows), f"{done} of {len(rows)} users")
    return items, best


def nearest_items(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], n: int, *, block: int = 1024
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The items whose vectors have the highest cosine with those of some items; exact, each compared with all.

    A zero vector has no direction: such an item has no neighbours and is nobody's.

    Args:
        vectors: float32 (N, d) finite; row i is item i + 1.
        rows: int64 (B,) rows of ``vectors``.
        n: Neighbours per item.
        block: Items that are compared with all others at once; changes memory, not results beyond rounding.

    Returns:
        int32 (B, n) items, the most similar first and the lower one first where cosines are equal, NO_ITEM where there
        are fewer others; and their float32 (B, n) cosines, -inf there.

    Raises:
        SettingsError: ``n`` is below 1.
    """
    _check(n)
    directions = nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    without = torch.from_numpy(~vectors.any(axis=1))
    items = np.full((len(rows), n), NO_ITEM, np.int32)
    best = np.full((len(rows), n), -np.inf, np.float32)
    for start in range(0, len(rows), block):
        these = torch.from_numpy(rows[start : start + block])
        cosine = (directions[these] @ directions.T).clamp_(-1, 1)
        cosine[torch.arange(len(these)), these] = -torch.inf
        cosine[:, without] = -torch.inf
        cosine[without[these]] = -torch.inf
        items[start : start + block], best[start : start + block] = _best(cosine, n)
    return items, best


def _check(n: int, seen: str = "keep", bias: RepeatBias | None = None) -> None:
    if n < 1:
        raise SettingsError(f"n = {n} items are asked for.", remedy="Ask for at least one.")
    if seen not in SEEN_POLICIES:
        raise SettingsError(
            f"There is no policy seen = {seen!r}.", remedy=f"Choose one of: {', '.join(SEEN_POLICIES)}."
        )
    if seen == "weigh" and bias is None:
        raise SettingsError(
            "seen = 'weigh' needs what is added to the scores of a user's own items, and nothing was given.",
            remedy="Evaluate the model, which fits it, or choose mask or keep.",
        )


def _best(scores: Tensor, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The ``n`` best columns of (B, N) scores as items and values, see ``top_items``; -inf is not eligible."""
    n_items = scores.shape[1]
    k = min(n, n_items)
    found = scores.topk(min(k + 1, n_items), dim=1)
    columns = found.indices[:, :k]
    if k < n_items:
        # topk takes any of the columns that tie for the last place
        worst, next_best = found.values[:, k - 1], found.values[:, k]
        for row in ((worst == next_best) & ~torch.isneginf(worst)).nonzero().flatten().tolist():
            above = (scores[row] > worst[row]).nonzero().flatten()
            level = (scores[row] == worst[row]).nonzero().flatten()
            columns[row] = torch.cat([above, level[: k - len(above)]])
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    items = columns.gather(1, order) + 1
    items[torch.isneginf(values)] = NO_ITEM
    spare = (0, n - k)
    return (
        nn.functional.pad(items, spare, value=NO_ITEM).to(torch.int32).cpu().numpy(),
        nn.functional.pad(values, spare, value=-torch.inf).float().cpu().numpy(),
    )
