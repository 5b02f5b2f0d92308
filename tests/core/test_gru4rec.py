"""GRU4Rec against the recurrence written out step by step."""

import math

import pytest
import torch

from p2rec_core.backbones.gru4rec import GRU4Rec
from p2rec_core.dropout import dropout

D, INNER, LENGTH = 10, 14, 9


def make_gru4rec(rate: float = 0.3) -> GRU4Rec:
    torch.manual_seed(3)
    model = GRU4Rec(hidden_size=D, inner_size=INNER, dropout=rate, max_length=LENGTH)
    # far from the initial values, so that the gates are where they are not linear
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model.eval()


def step_by_step(weights: dict[str, torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    w_r, w_z, w_n = weights["gru.weight_ih_l0"].split(INNER)
    u_r, u_z, u_n = weights["gru.weight_hh_l0"].split(INNER)
    rows = []
    for row in vectors:
        hidden, states = torch.zeros(INNER, dtype=vectors.dtype), []
        for x in row:
            reset = 1 / (1 + torch.exp(-(w_r @ x + u_r @ hidden)))
            update = 1 / (1 + torch.exp(-(w_z @ x + u_z @ hidden)))
            new = torch.tanh(w_n @ x + reset * (u_n @ hidden))
            hidden = (1 - update) * new + update * hidden
            states.append(weights["output.weight"] @ hidden + weights["output.bias"])
        rows.append(torch.stack(states))
    return torch.stack(rows)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([9, 1, 4, 7])
    vectors = torch.randn(4, 9, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vectors * (torch.arange(9)[None] < lengths[:, None])[..., None], lengths


def test_states_are_those_of_the_recurrence():
    model = make_gru4rec().double()
    vectors, lengths = batch()
    expected = step_by_step(model.state_dict(), vectors)
    torch.testing.assert_close(model(vectors, lengths), expected, rtol=1e-10, atol=1e-10)
    last = torch.stack([expected[row, length - 1] for row, length in enumerate(lengths)])
    torch.testing.assert_close(model.final(vectors, lengths), last, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_recurrence():
    model = make_gru4rec().double()
    vectors, lengths = batch()
    vectors.requires_grad_()
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (model(vectors, lengths) * direction).sum().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    copied = vectors.detach().clone().requires_grad_()
    (step_by_step(copies, copied) * direction).sum().backward()
    torch.testing.assert_close(vectors.grad, copied.grad, rtol=1e-9, atol=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, copies[name].grad, rtol=1e-9, atol=1e-10, msg=name)


def test_initial_values_are_recboles():
    torch.manual_seed(0)
    model = GRU4Rec(hidden_size=64, inner_size=128, dropout=0.3, max_length=50)
    assert {name for name, _ in model.named_parameters()} == {
        "gru.weight_ih_l0",
        "gru.weight_hh_l0",
        "output.weight",
        "output.bias",
    }
    for weight in (model.gru.weight_ih_l0, model.gru.weight_hh_l0):
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_dropout_is_of_item_vectors_and_for_training_only():
    model = make_gru4rec(rate=0.5)
    vectors, lengths = torch.ones(1, 1, D), torch.tensor([1])
    torch.testing.assert_close(model(vectors, lengths), model(vectors, lengths), rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    dropped = model(vectors, lengths)
    torch.manual_seed(0)
    seen = dropout(vectors, 0.5)
    assert 0 < (seen == 0).sum() < D
    torch.testing.assert_close(dropped, model.eval()(seen, lengths))
