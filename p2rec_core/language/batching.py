"""Cutting user sequences into batches of similar length."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PASS_TOKENS = {"cpu": 64, "cuda": 4096}


def pass_tokens(device: torch.device) -> int:
    """What a pass through the model costs beside its tokens, in tokens: it decides how work is cut, nothing else."""
    return _PASS_TOKENS.get(device.type, _PASS_TOKENS["cuda"])


@dataclass(frozen=True)
class Sequences:
    """Training parts of all users, one behind the other.

    Attributes:
        items: item_idx, int32 (interactions,), user after user, each in time order.
        offsets: User u has ``items[offsets[u]:offsets[u + 1]]``, int64 (U + 1,).
        max_length: Most recent items of a user that are read.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    max_length: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items that are read of each user, int64 (U,)."""
        return np.minimum(np.diff(self.offsets), self.max_length)

    def padded(self, users: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Some users' most recent items.

        Args:
            users: Rows of the users, int64 (B,).
            device: Where the tensors are put.

        Returns:
            item_idx, int64 (B, L), right-padded with 0 to the longest, and lengths, int64 (B,).
        """
        ends = self.offsets[users + 1]
        lengths = np.minimum(ends - self.offsets[users], self.max_length)
        place = np.arange(lengths.max())[None]
        index = (ends - lengths)[:, None] + place
        present = place < lengths[:, None]
        rows = np.where(present, self.items[np.where(present, index, 0)], 0).astype(np.int64)
        return torch.from_numpy(rows).to(device), torch.from_numpy(lengths).to(device)


def cut_by_length(
    users: NDArray[np.int64], lengths: NDArray[np.int64], *, n_extra: int, max_tokens: int, overhead: int
) -> list[NDArray[np.int64]]:
    """Cut users into micro-batches so that little is padded.

    Sorted by length, the users are cut where the sum of padded tokens and of ``overhead`` per micro-batch is
    least (dynamic programming over the distinct lengths); parts above ``max_tokens`` are then divided evenly.

    Args:
        users: Rows of the users, int64 (n,).
        lengths: Items of these users, int64 (n,).
        n_extra: Tokens that every sequence has beside its items.
        max_tokens: Tokens of a micro-batch, padding included, at the most; a single longer sequence passes.
        overhead: What a micro-batch costs beside its tokens, in tokens.

    Returns:
        The users of each micro-batch, each user once.
    """
    order = np.argsort(lengths, kind="stable")
    widths, first = np.unique(lengths[order] + n_extra, return_index=True)
    starts = np.append(first, len(users))
    best = np.zeros(len(widths) + 1)
    cut = np.zeros(len(widths) + 1, np.int64)
    for end in range(1, len(widths) + 1):
        tokens = (starts[end] - starts[:end]) * widths[end - 1]
        cost = best[:end] + tokens + overhead * np.ceil(tokens / max_tokens)
        cut[end] = int(cost.argmin())
        best[end] = cost[cut[end]]
    batches: list[NDArray[np.int64]] = []
    end = len(widths)
    while end > 0:
        begin = int(cut[end])
        part = users[order[starts[begin] : starts[end]]]
        rows = max(1, max_tokens // int(widths[end - 1]))
        batches.extend(np.array_split(part, -(-len(part) // rows)))
        end = begin
    return batches


def cut_packed(
    users: NDArray[np.int64], lengths: NDArray[np.int64], *, n_extra: int, max_tokens: int
) -> list[NDArray[np.int64]]:
    """Cut users, sorted by length, into micro-batches of about equal size where nothing is padded.

    Args:
        users: Rows of the users, int64 (n,).
        lengths: Items of these users, int64 (n,).
        n_extra: Tokens that every sequence has beside its items.
        max_tokens: Tokens of a micro-batch at the most; a single longer sequence passes.

    Returns:
        The users of each micro-batch, each user once.
    """
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order] + n_extra)
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        left = int(ends[-1]) - before
        share = left / -(-left // max_tokens)
        stop = max(start + 1, int(np.searchsorted(ends, before + share, side="right")))
        batches.append(users[order[start:stop]])
        start = stop
    return batches


def micro_batches(
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    n_prompt_tokens: int,
    max_tokens: int,
    device: torch.device,
    packed: bool = False,
) -> list[NDArray[np.int64]]:
    """Cut rows of known lengths as suits the device and the model; see ``cut_by_length`` and ``cut_packed``."""
    if packed:
        return cut_packed(rows, lengths, n_extra=n_prompt_tokens, max_tokens=max_tokens)
    return cut_by_length(rows, lengths, n_extra=n_prompt_tokens, max_tokens=max_tokens, overhead=pass_tokens(device))


__all__ = ["Sequences", "cut_by_length", "cut_packed", "micro_batches", "pass_tokens"]
