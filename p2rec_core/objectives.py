"""Cross-entropy over the catalogue, or over a sample of it, without the positions x catalogue matrix.

The logits of Beauty's 131,413 training positions over 12,101 items would be 6.4 GB, and autograd would keep them
for the backward pass. Here positions go through in chunks and items in tiles that stay in a core's cache; the gradient
is computed at once, while the exponentials are there, and only gradients of the size of the inputs are kept.

With s the target's logit and z the logarithm of the summed exponentials of all *other* logits, the loss of a position
is softplus(z - s), and its derivative is σ(z - s) times that of z - s: no probability that is nearly one is subtracted
from one, and nothing underflows. A sample in place of all others changes z alone.

A user's own items may have logits that a learned number is added to (``OwnItemBias``): that changes a few places of
each row, and nothing of the size of the logits is kept for it either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHED_ITEMS = 1024
"""Items of a tile on a CPU: the logits of 512 positions then take 2 MiB. A GPU takes all items at once."""

_TINY = torch.finfo(torch.float32).tiny
_LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class OwnItemBias:
    """The items that stand before each position, whose logits a number is added to.

    Attributes:
        positions: int64 (M,) position, not descending.
        items: int64 (M,) zero-based row of the table; an item stands once for a position.
        kinds: int64 (M,) which number of ``bias`` is added.
        bias: float32 (kinds,), learned with the rest.
    """

    positions: Tensor
    items: Tensor
    kinds: Tensor
    bias: Tensor


class _FusedCrossEntropy(torch.autograd.Function):
    """Sum of softplus(z + correction - s) over positions, with the gradients computed in the forward pass.

    ``rivals`` int64 (M,) are the rows of the table that z is summed over, without repetition; None takes all. ``bias``
    is that of ``own``, given by itself since autograd looks at arguments that are tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rivals: Tensor | None,
        own: OwnItemBias | None,
        correction: float,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        need_states, need_table = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        left, whole = states.detach().to(dtype), table.detach().to(dtype)
        right = whole if rivals is None else whole[rivals]
        places = None if rivals is None else _places(rivals, len(whole))
        columns = targets if places is None else places[targets]
        grad_states = torch.zeros(left.shape, dtype=torch.float32, device=left.device) if need_states else None
        grad_right = torch.zeros(right.shape, dtype=torch.float32, device=left.device) if need_table else None
        vectors = whole[targets].float()
        positive = (left * vectors).sum(1)
        added = None if own is None else _Added(own, places, targets, chunk, _tile_width(left, len(right)))
        if added is not None:
            positive.index_add_(0, added.hits, added.bias[added.hit_kinds])
        missing = torch.empty_like(positive)
        total = positive.new_zeros(())
        # one buffer for all chunks: fresh ones of this size would be mapped, zeroed and unmapped every time
        buffer = left.new_empty(min(chunk, len(left)) * len(right))
        for start in range(0, len(left), chunk):
            rows = slice(start, start + chunk)
            part = left[rows]
            tiles = list(_tiles(buffer, len(part), len(right)))
            largest = _logits(part, right, columns[rows], tiles, None if added is None else added.of(start))
            summed = torch.zeros_like(largest)
            for _, block in tiles:
                exact = block if dtype == torch.float32 else block.float()
                summed += exact.sub_(largest[:, None]).exp_().sum(1)
                if exact is not block:
                    block.copy_(exact)
            gap = summed.log() + largest + correction - positive[rows]
            total += F.softplus(gap).sum()
            missing[rows] = torch.sigmoid(gap)
            share = (missing[rows] / summed.clamp_min(_TINY))[:, None]
            if added is not None:
                added.note(start, tiles, share)
            if grad_states is not None:
                gradient = grad_states[rows]
                for items, block in tiles:
                    _add_product(gradient, block, right[items])
                gradient.mul_(share).sub_(missing[rows, None] * vectors[rows])
            if grad_right is not None:
                scaled = (part * share).to(dtype)
                for items, block in tiles:
                    _add_product(grad_right[items], block.T, scaled)
        grad_table = grad_right
        if grad_right is not None and rivals is not None:
            grad_table = grad_right.new_zeros(table.shape).index_copy_(0, rivals, grad_right)
        if grad_table is not None:
            grad_table.index_add_(0, targets, left * missing[:, None], alpha=-1)
        grad_bias = None
        if added is not None:
            grad_bias = added.gradient - _summed_by_kind(missing[added.hits], added.hit_kinds, len(added.gradient))
        ctx.save_for_backward(grad_states, grad_table, grad_bias)
        ctx.dtypes = states.dtype, table.dtype, torch.float32
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            None if gradient is None else (gradient * upstream[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None, None, None, None, None)


class _Added:
    """Where the bias of own items goes, by chunk of positions and tile of items, and its gradient.

    Args:
        own: The own items.
        places: int64 (N,) column of each item among the rivals, -1 where it is none; None where all are.
        targets: int64 (P,) target of each position.
        chunk: Positions of a chunk.
        width: Items of a tile.
    """

    def __init__(self, own: OwnItemBias, places: Tensor | None, targets: Tensor, chunk: int, width: int) -> None:
        self.bias = own.bias.detach().float()
        self.gradient = torch.zeros_like(self.bias)
        hit = own.items == targets[own.positions]
        self.hits, self.hit_kinds = own.positions[hit], own.kinds[hit]
        column = own.items if places is None else places[own.items]
        # a target is no rival of itself
        rival = ~hit & (column >= 0)
        column, position, kind = column[rival], own.positions[rival], own.kinds[rival]
        self._n_tiles = int(column.max()) // width + 1 if len(column) else 1
        place = position // chunk * self._n_tiles + column // width
        order = torch.argsort(place, stable=True)
        n_places = (len(targets) // chunk + 1) * self._n_tiles
        starts = torch.searchsorted(place[order], torch.arange(n_places + 1, device=place.device))
        self._starts = starts.tolist()
        self._row, self._column, self._kind = (
            (position % chunk)[order],
            (column % width)[order],
            kind[order],
        )
        self._chunk = chunk

    def of(self, start: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per tile of the chunk that begins at a position: rows, columns and what is added."""
        return [(self._row[s], self._column[s], self.bias[self._kind[s]]) for s in self._slices(start)]

    def note(self, start: int, tiles: list[tuple[slice, Tensor]], share: Tensor) -> None:
        """Add a chunk's part of the gradient: exponentials of own items times their position's (rows, 1) share."""
        for (_, block), s in zip(tiles, self._slices(start), strict=False):
            row = self._row[s]
            parts = block[row, self._column[s]].float() * share[row, 0]
            self.gradient += _summed_by_kind(parts, self._kind[s], len(self.gradient))

    def _slices(self, start: int) -> list[slice]:
        first = start // self._chunk * self._n_tiles
        return [slice(self._starts[k], self._starts[k + 1]) for k in range(first, first + self._n_tiles)]


def _summed_by_kind(values: Tensor, kinds: Tensor, n_kinds: int) -> Tensor:
    """Sums of values (M,) by their kinds (M,), as a product: a GPU has little to do at once in an ``index_add_``."""
    return values @ (kinds[:, None] == torch.arange(n_kinds, device=kinds.device)).to(values.dtype)


def _places(rivals: Tensor, n_items: int) -> Tensor:
    """Where each item is among ``rivals``, int64 (N,); -1 where it is not."""
    places = rivals.new_full((n_items,), -1)
    places[rivals] = torch.arange(len(rivals), device=rivals.device)
    return places


def _tiles(buffer: Tensor, n_positions: int, n_items: int) -> Iterator[tuple[slice, Tensor]]:
    """Cut items into tiles; with each, its contiguous part of the buffer as (positions, items of the tile)."""
    width = _tile_width(buffer, n_items)
    for start in range(0, n_items, width):
        end = min(start + width, n_items)
        yield slice(start, end), buffer[start * n_positions : end * n_positions].view(n_positions, end - start)


def _tile_width(buffer: Tensor, n_items: int) -> int:
    return _CACHED_ITEMS if buffer.device.type == "cpu" else max(n_items, 1)


def _logits(
    part: Tensor,
    right: Tensor,
    columns: Tensor,
    tiles: list[tuple[slice, Tensor]],
    added: list[tuple[Tensor, Tensor, Tensor]] | None,
) -> Tensor:
    """Write the tiles' logits, with -inf at each position's target, and give the largest of each position."""
    largest = part.new_full((len(part),), _LOWEST, dtype=torch.float32)
    for tile, (items, block) in enumerate(tiles):
        torch.matmul(part, right[items].T, out=block)
        if added is not None and tile < len(added):
            row, column, value = added[tile]
            block[row, column] = block[row, column] + value.to(block.dtype)
        inside = (columns >= items.start) & (columns < items.stop)
        place = (columns - items.start).clamp(0, block.shape[1] - 1)[:, None]
        block.scatter_(1, place, block.gather(1, place).masked_fill_(inside[:, None], -torch.inf))
        largest = torch.maximum(largest, block.amax(1))
    return largest


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to a float32 total in place."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right


def _fused(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    rivals: Tensor | None,
    own: OwnItemBias | None,
    correction: float,
    chunk: int,
) -> Tensor:
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    with torch.autocast(device, enabled=False):
        total: Tensor = _FusedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            states, table, None if own is None else own.bias, targets, rivals, own, correction, chunk, dtype
        )
    return total


def catalogue_cross_entropy(
    states: Tensor, table: Tensor, targets: Tensor, *, own: OwnItemBias | None = None, chunk: int = 512
) -> Tensor:
    """Cross-entropy of the next item over the whole catalogue, summed over positions.

    Args:
        states: (P, d) one state per position to predict from.
        table: (N, d) item vectors without PAD.
        targets: int64 (P,) zero-based rows of ``table``.
        own: What stands before each position, and what is added to its logits; None adds nothing.
        chunk: Positions whose logits are in memory at once: chunk x N x 4 bytes.

    Returns:
        A float32 scalar.

    Source: RecBole's cross-entropy for sequential models (full softmax); the gradient in the forward pass follows
        Hsu et al. (2024), Liger Kernel, section 3.2.
    """
    return _fused(states, table, targets, None, own, 0.0, chunk)


def sampled_cross_entropy(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    n_negatives: int,
    *,
    own: OwnItemBias | None = None,
    chunk: int = 512,
) -> Tensor:
    """Cross-entropy of the next item estimated from a uniform sample of the catalogue, summed over positions.

    The sample's part of the partition function stands for all other items, so that the loss and its gradient estimate
    those of ``catalogue_cross_entropy`` at a fraction of the products. One sample serves all positions; an item of the
    sample that is a position's target is left out there.

    Args:
        states: (P, d) one state per position to predict from.
        table: (N, d) item vectors without PAD.
        targets: int64 (P,) zero-based rows of ``table``.
        n_negatives: Items in the sample; drawn without repetition from torch's random numbers.
        own: What stands before each position, and what is added to its logits; None adds nothing.
        chunk: Positions whose logits are in memory at once: chunk x sample x 4 bytes.

    Returns:
        A float32 scalar.

    Source: Jean et al. (2015), "On using very large target vocabulary for neural machine translation", section 3, with
        the uniform proposal of Klenitskiy and Vasilev (2023), "Turning dross into gold loss".
    """
    n_items = len(table)
    sample = torch.randperm(n_items, device=table.device)[:n_negatives]
    return _fused(states, table, targets, sample, own, math.log(n_items / len(sample)), chunk)
