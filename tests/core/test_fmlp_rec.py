"""FMLP-Rec against circular convolution written out, and against numpy's Fourier transform."""

import math

import numpy as np
import pytest
import torch

from p2rec_core.backbones.base import left_padded
from p2rec_core.backbones.fmlp_rec import FilterBlock, FMLPRec

D, INNER = 6, 10
EVEN, ODD = 8, 9


def make_fmlp_rec(length: int, n_layers: int = 2, dropout: float = 0.5) -> FMLPRec:
    torch.manual_seed(3)
    model = FMLPRec(hidden_size=D, n_layers=n_layers, inner_size=INNER, dropout=dropout, max_length=length)
    # far from the initial values, so that filters, GELU and norms matter
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model.eval()


def kernel_of(spectrum: torch.Tensor, length: int) -> torch.Tensor:
    """The real sequence (L, d) whose spectrum is K, by the definition of the inverse transform."""
    real, imaginary = spectrum[..., 0], spectrum[..., 1]
    rows = []
    for t in range(length):
        value = real[0]
        for f in range(1, length // 2 + 1):
            angle = 2 * math.pi * f * t / length
            if 2 * f == length:
                value = value + real[f] * math.cos(angle)
            else:
                value = value + 2 * (real[f] * math.cos(angle) - imaginary[f] * math.sin(angle))
        rows.append(value / length)
    return torch.stack(rows)


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def explicit(weights: dict[str, torch.Tensor], rows: list[torch.Tensor], length: int, n_layers: int) -> torch.Tensor:
    """Final states of rows of item vectors (n, d), all places computed in every layer, in the time domain."""
    states = []
    for items in rows:
        kept = items[max(0, len(items) - length) :]
        x = torch.cat([torch.zeros(length - len(kept), D, dtype=items.dtype), kept]) + weights["position.weight"]
        x = norm(x, weights, "norm")
        for layer in range(n_layers):
            w = {n.removeprefix(f"blocks.{layer}."): t for n, t in weights.items() if n.startswith(f"blocks.{layer}.")}
            kernel = kernel_of(w["filter"], length)
            filtered = torch.stack([sum(kernel[(t - s) % length] * x[s] for s in range(length)) for t in range(length)])
            x = norm(x + filtered, w, "filter_norm")
            inner = x @ w["inner.weight"].T + w["inner.bias"]
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            x = norm(x + inner @ w["outer.weight"].T + w["outer.bias"], w, "output_norm")
        states.append(x[-1])
    return torch.stack(states)


def batch(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one item, of some, of as many as are read, and of more."""
    lengths = torch.tensor([length + 2, 1, 4, length])
    vectors = torch.randn(4, length + 2, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vectors * (torch.arange(length + 2)[None] < lengths[:, None])[..., None], lengths


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("length", [EVEN, ODD])
def test_states_are_those_of_circular_convolutions(length, n_layers):
    model = make_fmlp_rec(length, n_layers).double()
    vectors, lengths = batch(length)
    expected = explicit(model.state_dict(), [vectors[row, :n] for row, n in enumerate(lengths)], length, n_layers)
    torch.testing.assert_close(model.final(vectors, lengths), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [EVEN, ODD])
def test_gradients_are_those_of_circular_convolutions(length):
    model = make_fmlp_rec(length).double()
    vectors, lengths = batch(length)
    vectors.requires_grad_()
    direction = torch.randn(4, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (model.final(vectors, lengths) * direction).sum().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    copied = vectors.detach().clone().requires_grad_()
    rows = [copied[row, :n] for row, n in enumerate(lengths)]
    (explicit(copies, rows, length, 2) * direction).sum().backward()
    torch.testing.assert_close(vectors.grad, copied.grad, rtol=1e-8, atol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, copies[name].grad, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("length", [EVEN, ODD])
def test_the_filter_is_that_of_numpys_transform(length):
    block = make_fmlp_rec(length).double().blocks[0]
    x = np.random.default_rng(0).normal(size=(3, length, D))
    spectrum = block.filter.detach().numpy()
    product = np.fft.rfft(x, axis=1, norm="ortho") * (spectrum[..., 0] + 1j * spectrum[..., 1])
    expected = np.fft.irfft(product, n=length, axis=1, norm="ortho")
    found = []
    block._mixed = lambda rows, filtered: found.append(filtered.detach().numpy())
    block(torch.from_numpy(x))
    block(torch.from_numpy(x), last_only=True)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found[1], expected[:, -1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [EVEN, ODD, 50])
def test_the_last_place_alone_is_the_last_of_all(length):
    torch.manual_seed(0)
    block = FilterBlock(D, INNER, 0.0, length)
    with torch.no_grad():
        block.filter.mul_(20)
    found = {}
    for last_only in (False, True):
        x = torch.randn(5, length, D, generator=torch.Generator().manual_seed(4)).requires_grad_()
        block.zero_grad()
        state = block(x, last_only=True) if last_only else block(x)[:, -1]
        (state * torch.arange(1.0, D + 1)).sum().backward()
        found[last_only] = [state.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]
    for ours, plain in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_padding_is_a_position_and_nothing_else():
    model = make_fmlp_rec(EVEN)
    vectors, lengths = batch(EVEN)
    rows = left_padded(vectors, lengths, EVEN)
    assert rows.shape == (4, EVEN, D)
    assert not rows[1, :-1].any()
    torch.testing.assert_close(rows[1, -1], vectors[1, 0])
    torch.testing.assert_close(rows[0], vectors[0, 2:])
    # not masked: where the padding is, its position counts
    before = model.final(vectors.float(), lengths)
    with torch.no_grad():
        model.position.weight[0].mul_(-1)
    assert not torch.allclose(model.final(vectors.float(), lengths)[1], before[1])


def test_there_is_no_state_within_a_row():
    model = make_fmlp_rec(EVEN)
    assert not model.causal
    vectors, lengths = batch(EVEN)
    with pytest.raises(NotImplementedError, match="FMLPRec is not causal: it has a final state only"):
        model(vectors, lengths)
    # the filter goes round: within a block, an item changes the places before it
    x = torch.randn(1, EVEN, D)
    changed = x.clone()
    changed[0, -1] += 1
    assert (model.blocks[0](x)[0, 0] != model.blocks[0](changed)[0, 0]).any()


def test_initial_values_are_the_authors():
    torch.manual_seed(0)
    model = FMLPRec(hidden_size=64, n_layers=2, inner_size=256, dropout=0.5, max_length=50)
    assert model.blocks[0].filter.shape == (26, 64, 2)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_bfloat16_keeps_the_transform_in_float32():
    model = make_fmlp_rec(EVEN)
    vectors, lengths = batch(EVEN)
    exact = model.final(vectors.float(), lengths)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.final(vectors.float(), lengths)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
