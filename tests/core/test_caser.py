"""Caser against explicit windows, one filter at a time."""

import math

import pytest
import torch

from p2rec_core.backbones.caser import Caser

D, LENGTH = 6, 9
SHAPES = [(5, 3, 2), (1, 2, 3), (3, 1, 1), (9, 2, 2)]


def make_caser(window: int = 5, n_horizontal: int = 3, n_vertical: int = 2, dropout: float = 0.5) -> Caser:
    torch.manual_seed(3)
    model = Caser(
        hidden_size=D,
        window=window,
        n_horizontal=n_horizontal,
        n_vertical=n_vertical,
        dropout=dropout,
        max_length=LENGTH,
    )
    # far from the initial values; biases above zero keep most of the final ReLU's outputs alive
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 + (0.3 if name.endswith("bias") else 0.0))
    return model.eval()


def explicit(model: Caser, weights: dict[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
    """The state of one row of item vectors (n, d), n from 0, read as the paper draws it."""
    window = model.window
    image = torch.zeros(window, D, dtype=items.dtype)
    kept = items[max(0, len(items) - window) :]
    if len(kept):
        image = torch.cat([image[: window - len(kept)], kept])
    n_vertical = len(weights["vertical.weight"])
    features = []
    for v in range(n_vertical):
        for column in range(D):
            weighted = sum(weights["vertical.weight"][v, row] * image[row, column] for row in range(window))
            features.append(weighted + weights["vertical.bias"][v])
    for height in range(1, window + 1):
        bank = weights[f"horizontal.{height - 1}.weight"]  # (n_h, d, height)
        for f in range(len(bank)):
            best = None
            for top in range(window - height + 1):
                value = (bank[f] * image[top : top + height].T).sum() + weights[f"horizontal.{height - 1}.bias"][f]
                value = value.clamp_min(0)
                best = value if best is None or value > best else best
            features.append(best)
    inner = (weights["inner.weight"] @ torch.stack(features) + weights["inner.bias"]).clamp_min(0)
    return (weights["outer.weight"] @ inner + weights["outer.bias"]).clamp_min(0)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([9, 1, 4, 7])
    vectors = torch.randn(4, 9, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vectors * (torch.arange(9)[None] < lengths[:, None])[..., None], lengths


@pytest.mark.parametrize("shape", SHAPES)
def test_every_state_is_that_of_its_window(shape):
    model = make_caser(*shape).double()
    vectors, lengths = batch()
    states, weights = model(vectors, lengths), model.state_dict()
    assert (states > 0).double().mean() > 0.3
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            expected = explicit(model, weights, vectors[row, : t + 1])
            torch.testing.assert_close(states[row, t], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model.final(vectors, lengths)[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_windows(shape):
    model = make_caser(*shape).double()
    vectors, lengths = batch()
    vectors.requires_grad_()
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    real = (torch.arange(9)[None] < lengths[:, None])[..., None]
    (model(vectors, lengths) * direction * real).sum().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    copied = vectors.detach().clone().requires_grad_()
    total = sum(
        (explicit(model, copies, copied[row, : t + 1]) * direction[row, t]).sum()
        for row, length in enumerate(lengths.tolist())
        for t in range(length)
    )
    total.backward()
    torch.testing.assert_close(vectors.grad, copied.grad, rtol=1e-9, atol=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, copies[name].grad, rtol=1e-9, atol=1e-10, msg=name)


def test_an_item_counts_as_long_as_it_is_in_the_window():
    model = make_caser(window=3)
    vectors, lengths = batch()
    vectors = vectors.float()
    before = model(vectors, lengths)
    changed = vectors.clone()
    changed[0, 2] += 1
    different = (model(changed, lengths)[0] != before[0]).any(dim=1)
    assert different.tolist() == [t in (2, 3, 4) for t in range(9)]


def test_the_same_item_twice_has_the_gradient_of_the_maximum():
    # the maximum over time is attained twice; which of the two gets the gradient is nothing to a shared vector
    model = make_caser(window=4, n_horizontal=2).double()
    vector = torch.randn(1, 1, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    model.final(vector.expand(1, 4, D), torch.tensor([4])).sum().backward()
    copied = vector.detach().clone().requires_grad_()
    explicit(model, dict(model.named_parameters()), copied.expand(1, 4, D)[0]).sum().backward()
    torch.testing.assert_close(vector.grad, copied.grad)


def test_initial_values_are_recboles():
    torch.manual_seed(0)
    model = Caser(hidden_size=64, window=5, n_horizontal=16, n_vertical=4, dropout=0.5, max_length=50)
    assert model.inner.in_features == 4 * 64 + 16 * 5
    for layer in (model.inner, model.outer):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / sum(layer.weight.shape)), rel=0.05)
        assert not layer.bias.any()
    # convolutions keep torch's uniform values of bound 1 / sqrt(fan in)
    for height, bank in enumerate(model.horizontal, start=1):
        assert bank.weight.abs().max().item() == pytest.approx(1 / math.sqrt(64 * height), rel=0.02)
    assert model.vertical.weight.abs().max().item() <= 1 / math.sqrt(5)


def test_dropout_is_of_what_the_filters_give_and_for_training_only():
    model = make_caser()
    vectors, lengths = batch()
    vectors = vectors.float()
    torch.testing.assert_close(model(vectors, lengths), model(vectors, lengths), rtol=0, atol=0)
    model.train()
    seen = []
    model.inner.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert not torch.allclose(model(vectors, lengths), model(vectors, lengths))
    assert 0.4 < (seen[0][0] == 0).float().mean() < 0.8  # half of them, and what ReLU gave
