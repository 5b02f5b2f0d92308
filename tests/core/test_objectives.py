"""The chunked cross-entropy against torch's over the whole matrix of logits."""

import pytest
import torch
import torch.nn.functional as F

from p2rec_core.objectives import catalogue_cross_entropy, sampled_cross_entropy

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def case(n_positions: int = 13, n_items: int = 29, width: int = 7, scale: float = 1.0) -> Case:
    rng = torch.Generator().manual_seed(4)
    states = torch.randn(n_positions, width, generator=rng) * scale
    table = torch.randn(n_items, width, generator=rng)
    targets = torch.randint(n_items, (n_positions,), generator=rng)
    return states.requires_grad_(), table.requires_grad_(), targets


def oracle(states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> Case:
    left, right = (t.detach().double().requires_grad_() for t in (states, table))
    loss = F.cross_entropy(left @ right.T, targets, reduction="sum")
    loss.backward()
    return loss.detach(), left.grad, right.grad


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 512])
def test_value_and_gradients(chunk):
    states, table, targets = case()
    loss = catalogue_cross_entropy(states, table, targets, chunk=chunk)
    (2.5 * loss).backward()
    value, left, right = oracle(states, table, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(states.grad.double(), 2.5 * left, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.grad.double(), 2.5 * right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e6])
def test_huge_logits(scale):
    # most targets' probabilities underflow: their logarithm is taken from the logits
    states, table, targets = case(scale=scale)
    value, left, right = oracle(states, table, targets)
    loss = catalogue_cross_entropy(states, table, targets, chunk=5)
    loss.backward()
    assert loss.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(states.grad.double(), left, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(table.grad.double(), right, rtol=1e-3, atol=1e-4 * scale)


def test_only_what_is_learned_gets_a_gradient():
    states, table, targets = case()
    _, left, right = oracle(states, table, targets)
    catalogue_cross_entropy(states, table.detach(), targets).backward()
    torch.testing.assert_close(states.grad.double(), left, rtol=1e-5, atol=1e-6)
    catalogue_cross_entropy(states.detach(), table, targets).backward()
    torch.testing.assert_close(table.grad.double(), right, rtol=1e-5, atol=1e-6)


def test_no_positions_cost_nothing():
    states, table, targets = case()
    loss = catalogue_cross_entropy(states[:0], table, targets[:0])
    loss.backward()
    assert loss.item() == 0.0
    assert not table.grad.any()


def test_bfloat16_is_close():
    states, table, targets = case(n_positions=40, n_items=60, width=16)
    value, left, right = oracle(states, table, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = catalogue_cross_entropy(states, table, targets, chunk=16)
    loss.backward()
    assert loss.dtype == torch.float32
    assert states.grad.dtype == table.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(value.item(), rel=1e-2)
    for ours, exact in ((states.grad, left), (table.grad, right)):
        assert F.cosine_similarity(ours.double().flatten(), exact.flatten(), dim=0) > 0.999


def test_repeats_are_bit_identical():
    states, table, targets = case(n_positions=200)
    first, second = (
        torch.autograd.grad(catalogue_cross_entropy(states, table, targets, chunk=64), (states, table))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_sample_of_the_whole_catalogue_is_the_full_softmax():
    states, table, targets = case()
    loss = sampled_cross_entropy(states, table, targets, len(table), chunk=5)
    loss.backward()
    value, left, right = oracle(states, table, targets)
    assert loss.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(states.grad.double(), left, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table.grad.double(), right, rtol=1e-4, atol=1e-5)


def test_a_sample_stands_for_the_catalogue():
    # on average over samples the partition function is that of the catalogue
    states, table, targets = case(n_positions=40, n_items=600, scale=0.3)
    value, _, _ = oracle(states, table, targets)
    torch.manual_seed(0)
    with torch.no_grad():
        losses = [sampled_cross_entropy(states, table, targets, 150).item() for _ in range(60)]
    assert sum(losses) / len(losses) == pytest.approx(value.item(), rel=0.01)
    assert len(set(losses)) > 50


@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_a_sample_leaves_each_target_out_of_its_rivals(chunk):
    states, table, targets = case(n_positions=30)
    torch.manual_seed(3)
    (2.5 * sampled_cross_entropy(states, table, targets, 7, chunk=chunk)).backward()
    torch.manual_seed(3)
    sample = torch.randperm(len(table))[:7]
    left, right = (t.detach().double().requires_grad_() for t in (states, table))
    weights = (left @ right.T).exp()
    total = left.new_zeros(())
    for row, target in enumerate(targets.tolist()):
        rivals = [item for item in sample.tolist() if item != target]
        total -= (weights[row, target] / (weights[row, target] + weights[row, rivals].sum() * len(table) / 7)).log()
    assert any(target in sample.tolist() for target in targets.tolist())
    total.backward()
    torch.testing.assert_close(states.grad.double(), 2.5 * left.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.grad.double(), 2.5 * right.grad, rtol=1e-5, atol=1e-6)


def test_a_sample_of_the_target_alone_costs_nothing():
    states, table, _ = case(n_positions=1, n_items=1)
    loss = sampled_cross_entropy(states, table, torch.zeros(1, dtype=torch.int64), 1)
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any()
    assert not table.grad.any()


def test_more_items_than_a_tile():
    states, table, targets = case(n_positions=6, n_items=2500)
    loss = catalogue_cross_entropy(states, table, targets, chunk=4)
    loss.backward()
    value, left, right = oracle(states, table, targets)
    assert loss.item() == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(states.grad.double(), left, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.grad.double(), right, rtol=1e-5, atol=1e-6)


def test_a_sample_is_a_function_of_the_seed():
    states, table, targets = case()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(sampled_cross_entropy(states, table, targets, 7).item())
    assert values[0] == values[1] != values[2]


def test_no_positions_cost_nothing_in_a_sample_either():
    _, table, _ = case()
    loss = sampled_cross_entropy(torch.zeros(0, 7), table, torch.zeros(0, dtype=torch.int64), 5)
    assert loss.item() == 0
