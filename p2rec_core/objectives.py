"""Full-softmax cross-entropy over the catalogue without the positions x catalogue matrix.

The logits of Beauty's 131,413 training positions over 12,101 items would be 6.4 GB, and autograd would keep them
for the backward pass. Here positions go through in chunks; each chunk's gradient is computed at once, while its
softmax is in the cache, and only gradients of the size of the inputs are kept.
"""

import math
from typing import Any

import torch
from torch import Tensor

_UNDERFLOW = 1e-30


class _FusedCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(states @ table.T)[target], with the gradients computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
        need_states, need_table = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        left, right = states.detach().to(dtype), table.detach().to(dtype)
        grad_states = torch.empty_like(left) if need_states else None
        grad_table = torch.zeros(right.shape, dtype=torch.float32, device=right.device) if need_table else None
        total = states.new_zeros((), dtype=torch.float32)
        # one buffer for all chunks: fresh ones of this size would be mapped, zeroed and unmapped every time
        buffer = left.new_empty(min(chunk, len(left)), len(right))
        for start in range(0, len(left), chunk):
            rows = slice(start, start + chunk)
            target = targets[rows, None]
            logits = torch.matmul(left[rows], right.T, out=buffer[: len(target)])
            in_place = logits if dtype == torch.float32 else None
            probability = torch.softmax(logits, dim=1, dtype=torch.float32, out=in_place)
            total += _negative_log(probability.gather(1, target).squeeze(1), left[rows], right, targets[rows])
            probability.scatter_add_(1, target, probability.new_full((1, 1), -1.0).expand(len(target), 1))
            gradient = probability.to(dtype)
            if grad_states is not None:
                torch.matmul(gradient, right, out=grad_states[rows])
            if grad_table is not None:
                if dtype == torch.float32:
                    grad_table.addmm_(gradient.T, left[rows])
                else:
                    grad_table += gradient.T @ left[rows]
        ctx.save_for_backward(grad_states, grad_table)
        ctx.dtypes = states.dtype, table.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_states, grad_table = ctx.saved_tensors
        scale = upstream[0]
        return (
            None if grad_states is None else (grad_states * scale).to(ctx.dtypes[0]),
            None if grad_table is None else (grad_table * scale).to(ctx.dtypes[1]),
            None,
            None,
            None,
        )


def _negative_log(probability: Tensor, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Summed -log of the targets' probabilities (P,); where one underflows, from its logits computed again."""
    tiny = probability < _UNDERFLOW
    loss = -probability.clamp_min(_UNDERFLOW).log()
    if bool(tiny.any()):
        logits = (states[tiny] @ table.T).float()
        exact = logits.logsumexp(1) - logits.gather(1, targets[tiny, None]).squeeze(1)
        loss = loss.masked_scatter(tiny, exact)
    return loss.sum()


def catalogue_cross_entropy(states: Tensor, table: Tensor, targets: Tensor, *, chunk: int = 512) -> Tensor:
    """Cross-entropy of the next item over the whole catalogue, summed over positions.

    Args:
        states: (P, d) one state per position to predict from.
        table: (N, d) item vectors without PAD.
        targets: int64 (P,) zero-based rows of ``table``.
        chunk: Positions whose logits are in memory at once: chunk x N x 4 bytes, twice.

    Returns:
        A float32 scalar.

    Source: RecBole's cross-entropy for sequential models (full softmax); the gradient in the forward pass follows
        Hsu et al. (2024), Liger Kernel, section 3.2.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    with torch.autocast(device, enabled=False):
        total: Tensor = _FusedCrossEntropy.apply(states, table, targets, chunk, dtype)  # type: ignore[no-untyped-call]
    return total


def sampled_cross_entropy(
    states: Tensor, table: Tensor, targets: Tensor, n_negatives: int, *, chunk: int = 512
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
        chunk: Positions whose logits are computed at once.

    Returns:
        A float32 scalar.

    Source: Jean et al. (2015), "On using very large target vocabulary for neural machine translation", section 3, with
        the uniform proposal of Klenitskiy and Vasilev (2023), "Turning dross into gold loss".
    """
    n_items = len(table)
    sample = torch.randperm(n_items, device=table.device)[:n_negatives]
    negatives = table[sample]
    correction = math.log(n_items / len(sample))
    positive = (states * table[targets]).sum(1).float()
    parts = []
    for start in range(0, len(states), chunk):
        logits = (states[start : start + chunk] @ negatives.T).float()
        hit = targets[start : start + chunk, None] == sample[None]
        parts.append(logits.masked_fill(hit, -torch.inf).logsumexp(1))
    if not parts:
        return positive.sum()
    rest = torch.cat(parts) + correction
    return (torch.logaddexp(rest, positive) - positive).sum()
