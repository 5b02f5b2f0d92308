"""SASRec against a second derivation from RecBole's formulae: x ← LN(x + MHA(x)), x ← LN(x + FFN(x))."""

import math

import pytest
import torch

from p2rec_core.backbones.sasrec import SASRec
from p2rec_core.fusion import IdTable
from p2rec_core.recommender import Recommender

D, HEADS, INNER, LENGTH, LAYERS = 12, 3, 20, 9, 2


def make_sasrec(dropout: float = 0.5) -> SASRec:
    torch.manual_seed(3)
    model = SASRec(hidden_size=D, n_layers=LAYERS, n_heads=HEADS, inner_size=INNER, dropout=dropout, max_length=LENGTH)
    # far from the initial values, so that attention, GELU and norms are where they are not linear
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model.eval()


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def recbole(weights: dict[str, torch.Tensor], vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    length, width = vectors.shape[1:]
    real = torch.arange(length)[None] < lengths[:, None]
    allowed = torch.tril(torch.ones(length, length, dtype=torch.bool))[None] & real[:, None, :]
    mask = torch.where(allowed, 0.0, -10000.0).to(vectors.dtype)
    x = norm(vectors + weights["position.weight"][:length], weights, "norm")
    size = width // HEADS
    for layer in range(LAYERS):
        w = {n.removeprefix(f"blocks.{layer}."): t for n, t in weights.items() if n.startswith(f"blocks.{layer}.")}
        query, key, value = (
            x @ w["qkv.weight"][i * width : (i + 1) * width].T + w["qkv.bias"][i * width : (i + 1) * width]
            for i in range(3)
        )
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size) + mask
            weight = torch.exp(logits - logits.amax(-1, keepdim=True))
            heads.append(weight / weight.sum(-1, keepdim=True) @ value[..., part])
        attended = torch.cat(heads, -1) @ w["out.weight"].T + w["out.bias"]
        x = norm(x + attended, w, "attention_norm")
        inner = x @ w["inner.weight"].T + w["inner.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + inner @ w["outer.weight"].T + w["outer.bias"], w, "output_norm")
    return x


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([9, 1, 4, 7])
    vectors = torch.randn(4, 9, D, generator=torch.Generator().manual_seed(1))
    return vectors * (torch.arange(9)[None] < lengths[:, None])[..., None], lengths


def test_states_are_those_of_the_formulae():
    model = make_sasrec().double()
    vectors, lengths = batch()
    vectors = vectors.double()
    states = model(vectors, lengths)
    expected = recbole(model.state_dict(), vectors, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(states[row, :length], expected[row, :length], rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_formulae():
    model = make_sasrec().double()
    vectors, lengths = batch()
    vectors = vectors.double()
    real = (torch.arange(9)[None] < lengths[:, None])[..., None]
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * real
    (model(vectors, lengths) * direction).sum().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    (recbole(copies, vectors, lengths) * direction).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, copies[name].grad, rtol=1e-8, atol=1e-9, msg=name)


def test_a_user_alone_is_the_user_among_longer_ones():
    model = make_sasrec()
    vectors, lengths = batch()
    together = model(vectors, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model(vectors[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-5, atol=1e-6)


def test_scores_do_not_depend_on_the_neighbours():
    torch.manual_seed(0)
    model = Recommender(IdTable(30, D), make_sasrec()).eval()
    table = model.item_table()
    items = torch.tensor([[3, 7, 0, 0, 0], [1, 2, 4, 5, 6], [0, 0, 0, 0, 0]])
    together = model.scores(items, torch.tensor([2, 5, 0]), table)
    alone = model.scores(items[:1, :2], torch.tensor([2]), table)
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-7)
    assert together.shape == (3, 30)
    assert not together[2].any()  # a user without items says nothing


def test_a_later_item_changes_no_earlier_state():
    model = make_sasrec()
    vectors, lengths = batch()
    before = model(vectors, lengths)
    for position in range(1, 9):
        changed = vectors.clone()
        changed[0, position] = torch.randn(D, generator=torch.Generator().manual_seed(position))
        after = model(changed, lengths)
        torch.testing.assert_close(after[0, :position], before[0, :position], rtol=0, atol=0)
        assert not torch.allclose(after[0, position], before[0, position])


def test_initial_values_are_recboles():
    torch.manual_seed(0)
    model = SASRec(hidden_size=64, n_layers=2, n_heads=2, inner_size=256, dropout=0.5, max_length=50)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_dropout_is_for_training_only():
    model = make_sasrec()
    vectors, lengths = batch()
    torch.testing.assert_close(model(vectors, lengths), model(vectors, lengths), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(vectors, lengths), model(vectors, lengths))
