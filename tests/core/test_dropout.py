"""Dropout from random words: what it keeps, that coins are independent of each other, and its gradient."""

import math

import pytest
import torch

from p2rec_core.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1_000_003,), (1000, 7, 143)])
def test_it_keeps_its_part_and_the_mean(p, shape):
    torch.manual_seed(3)
    x = torch.ones(shape)
    y = dropout(x, p)
    assert y.shape == x.shape
    kept = y != 0
    n = x.numel()
    assert kept.sum().item() == pytest.approx((1 - p) * n, abs=5 * math.sqrt(p * (1 - p) * n))
    scale = 65536 / (65536 - round(p * 65536))
    assert scale == pytest.approx(1 / (1 - p), rel=1e-4)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], scale))


def test_coins_do_not_depend_on_their_neighbours():
    torch.manual_seed(4)
    kept = (dropout(torch.ones(4_000_000), 0.5) != 0).double()
    for lag in (1, 2, 3, 4, 5, 8, 16):
        agree = (kept[lag:] == kept[:-lag]).double().mean().item()
        assert agree == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(len(kept)))
    # each of the four coins of a word
    for place in range(4):
        assert kept[place::4].mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(len(kept) / 4))


def test_seeds_decide_the_coins():
    x = torch.randn(50, 33)
    torch.manual_seed(5)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.3), first)
    assert not torch.equal(first, second)


def test_what_is_dropped_gets_no_gradient():
    torch.manual_seed(6)
    x = torch.randn(40, 30, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach())


def test_numbers_of_half_precision_keep_their_type():
    assert dropout(torch.ones(8, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16


def test_nothing_is_dropped_without_need():
    x = torch.randn(4, 5)
    assert dropout(x, 0.0) is x
    assert Dropout(0.5).eval()(x) is x
    assert not torch.equal(Dropout(0.5).train()(x), x)
