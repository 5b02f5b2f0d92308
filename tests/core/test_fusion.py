"""Item tables and the preparation of knowledge embeddings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2rec_core.errors import DataError, SettingsError
from p2rec_core.fusion import (
    FUSIONS,
    ClusterTable,
    GatedKnowledgeTable,
    IdTable,
    InitialisedTable,
    SmoothedTable,
    knowledge_table,
    nearest_items,
)
from p2rec_core.whitening import pca_whitened, side_by_side, standardised

N, D, E, K = 9, 6, 11, 3


def knowledge(n: int = N, width: int = E, seed: int = 0) -> np.ndarray:
    """Anisotropic, as language models' states are: a large common part, and few strong directions."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, width)) * np.geomspace(5, 0.05, width) @ rng.normal(size=(width, width))
    return (mixed + 40).astype(np.float32)


def tables() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    return {
        "base": IdTable(N, D),
        "ci": ClusterTable(np.arange(N, dtype=np.int32) % K, K, D),
        "p2rec": made("gate"),
        **{fusion: made(fusion) for fusion in FUSIONS},
    }


def made(fusion: str, *, trainable: bool = False) -> torch.nn.Module:
    return knowledge_table(fusion, standardised(knowledge()), D, std=0.02, trainable=trainable)


@pytest.mark.parametrize("variant", ["base", "ci", *FUSIONS])
def test_a_table_has_a_zero_row_for_padding(variant):
    rows = tables()[variant]()
    assert rows.shape == (N + 1, D)
    assert not rows[0].any()
    assert rows[1:].abs().sum(1).min() > 0


def test_base_is_the_embedding():
    table = IdTable(N, D)
    torch.testing.assert_close(table()[1:], table.embedding.detach(), rtol=0, atol=0)
    assert [name for name, _ in table.named_parameters()] == ["embedding"]


def test_ci_adds_the_clusters_embedding():
    table = tables()["ci"]
    for item in range(N):
        expected = table.embedding[item] + table.cluster_embedding[item % K]
        torch.testing.assert_close(table()[item + 1], expected)


def test_the_gate_is_the_equation():
    table = tables()["p2rec"]
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.copy_(torch.randn_like(parameter))
    rows = table()[1:].detach().numpy()
    value = {name: p.detach().double().numpy() for name, p in table.named_parameters()}
    h = table.knowledge.double().numpy()
    for item in range(N):
        e = value["embedding"][item]
        projected = value["projection.weight"] @ h[item] + value["projection.bias"]
        gate = 1 / (1 + np.exp(-(value["gate.weight"] @ np.concatenate([e, projected]) + value["gate.bias"])))
        np.testing.assert_allclose(rows[item], gate * e + (1 - gate) * projected, rtol=1e-4, atol=1e-5)


def randomised(table: torch.nn.Module) -> dict[str, np.ndarray]:
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return {name: p.detach().double().numpy() for name, p in table.named_parameters()}


def test_the_sum_is_the_equation():
    table = made("sum")
    value = randomised(table)
    projected = table.knowledge.double().numpy() @ value["projection.weight"].T + value["projection.bias"]
    np.testing.assert_allclose(table()[1:].detach().numpy(), value["embedding"] + projected, rtol=1e-4, atol=1e-5)


def test_the_concatenation_is_the_equation():
    table = made("concat")
    value = randomised(table)
    projected = table.knowledge.double().numpy() @ value["projection.weight"].T + value["projection.bias"]
    both = np.concatenate([value["embedding"], projected], axis=1)
    expected = both @ value["mix.weight"].T + value["mix.bias"]
    np.testing.assert_allclose(table()[1:].detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_concatenation_starts_as_the_mean():
    table = made("concat")
    expected = (table.embedding + table.projection(table.knowledge)) / 2
    torch.testing.assert_close(table()[1:], expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_a_table_that_starts_from_knowledge(scale):
    prepared = (scale * standardised(knowledge())).astype(np.float32)
    table = InitialisedTable(prepared, D, std=0.1)
    start = table.embedding.detach().numpy()
    assert np.sqrt((start**2).mean()) == pytest.approx(0.1, rel=1e-5)
    np.testing.assert_allclose(start / start[0, 0], prepared[:, :D] / prepared[0, 0], rtol=1e-4)
    assert [name for name, p in table.named_parameters() if p.requires_grad] == ["embedding"]


def test_what_knowledge_does_not_reach_starts_as_noise():
    torch.manual_seed(0)
    table = InitialisedTable(np.ones((4000, 2), np.float32), 5, std=0.1)
    start = table.embedding.detach()
    torch.testing.assert_close(start[:, :2], torch.full((4000, 2), 0.1))
    assert start[:, 2:].std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("fusion", ["gate", "sum", "concat"])
def test_knowledge_is_fine_tuned_where_it_is_asked_for(fusion):
    for trainable in (False, True):
        table = made(fusion, trainable=trainable)
        (table() * torch.randn(N + 1, D)).sum().backward()
        trained = {name for name, p in table.named_parameters() if p.grad is not None and p.grad.any()}
        assert ("knowledge" in trained) == trainable


def test_an_unknown_fusion():
    with pytest.raises(SettingsError) as caught:
        made("cat")
    assert caught.value.problem == "There is no fusion 'cat'."
    assert caught.value.remedy == "Choose one of: gate, sum, concat, init."


def test_gradients_reach_everything_but_the_knowledge():
    table = tables()["p2rec"]
    (table() * torch.randn(N + 1, D)).sum().backward()
    trained = {name for name, p in table.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"embedding", "projection.weight", "projection.bias", "gate.weight", "gate.bias"}
    assert not table.knowledge.requires_grad
    assert "knowledge" not in table.state_dict()  # it is an artefact of its own


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_projected_knowledge_starts_at_the_scale_of_the_ids(scale):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    table = GatedKnowledgeTable((scale * rng.normal(size=(500, 64))).astype(np.float32), 32, std=0.02, trainable=False)
    projected = table.projection(table.knowledge)
    assert projected.std().item() == pytest.approx(table.embedding.std().item(), rel=0.15)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_knowledge_of_zeros_is_no_division_by_zero(fusion):
    assert torch.isfinite(knowledge_table(fusion, np.zeros((N, E), np.float32), D, std=0.1, trainable=False)()).all()


@given(st.integers(3, 40), st.integers(1, 8), st.integers(0, 50))
def test_standardised(n, width, seed):
    rows = standardised(knowledge(n, width, seed)).astype(np.float64)
    assert rows.shape == (n, width)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(0), 1, atol=1e-4)


@given(st.floats(-1e3, 1e3, width=32), st.integers(1, 300))
def test_a_constant_dimension_becomes_zero(value, n):
    rows = standardised(np.full((n, 2), value, np.float32))
    assert np.abs(rows).max() < 1e-6


def test_embeddings_side_by_side_count_as_much_as_each_other():
    one, other = knowledge(200), 1000 * knowledge(200, width=3, seed=1)
    both = side_by_side(one, other)
    assert both.dtype == np.float32
    assert both.shape == (200, E + 3)
    np.testing.assert_allclose(both.mean(0), 0, atol=1e-5)
    for block, own in ((both[:, :E], one), (both[:, E:], other)):
        assert (block**2).sum(1).mean() == pytest.approx(1, rel=1e-5)
        centred = own.astype(np.float64) - own.mean(0, dtype=np.float64)
        np.testing.assert_allclose(block * np.sqrt((centred**2).sum(1).mean()), centred, rtol=1e-3, atol=1e-3)


def test_an_item_of_which_nothing_is_said_is_at_the_centre():
    one, other = knowledge(50), knowledge(50, width=3, seed=1)
    other[7] = 0
    both = side_by_side(one, other)
    assert not both[7, E:].any()
    assert both[7, :E].any()
    np.testing.assert_array_equal(np.delete(both[:, E:], 7, 0), side_by_side(np.delete(other, 7, 0)))
    assert not side_by_side(one, np.zeros((50, 3), np.float32))[:, E:].any()


@pytest.mark.parametrize("n_components", [1, 4, E])
def test_whitened_components_are_uncorrelated_and_of_unit_variance(n_components):
    white = pca_whitened(knowledge(200), n_components)
    assert white.dtype == np.float32
    assert white.shape == (200, n_components)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.astype(np.float64), rowvar=False), np.eye(n_components), atol=1e-3)


def test_whitened_components_are_the_leading_ones():
    rows = knowledge(200).astype(np.float64)
    white = pca_whitened(rows.astype(np.float32), 3)
    left, _, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    for component in range(3):
        correlation = np.corrcoef(white[:, component], left[:, component])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-4)


def test_the_sign_of_a_component_is_fixed():
    rows = knowledge(100)
    white = pca_whitened(rows, 4)
    assert np.array_equal(white, pca_whitened(rows, 4))
    # the largest loading of every component is positive
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    loadings = np.linalg.lstsq(centred, white.astype(np.float64), rcond=None)[0]
    whitened_axes = np.linalg.pinv(loadings).T
    strongest = np.abs(whitened_axes).argmax(0)
    assert (whitened_axes[strongest, np.arange(4)] > 0).all()
    # the order of the items has no say
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_allclose(pca_whitened(rows[order], 4), white[order], atol=1e-3)


def test_more_components_than_rank():
    rows = knowledge(5, 8)
    pca_whitened(rows, 4)
    with pytest.raises(DataError) as caught:
        pca_whitened(rows, 5)
    assert caught.value.problem == (
        "5 principal components are asked for; the knowledge embeddings (5 items x 8) have rank 4."
    )
    assert caught.value.remedy == "Set fusion.n_components to 4 or less."


def test_smoothing_mixes_an_item_with_its_neighbours():
    table = IdTable(3, D)
    neighbours, weights = np.array([[1, 2], [0, 2], [0, 1]]), np.array([[0.25, 0.75]] * 3, np.float32)
    x = table.embedding.detach()
    expected = torch.stack([0.6 * x[v] + 0.4 * (0.25 * x[a] + 0.75 * x[b]) for v, (a, b) in enumerate(neighbours)])
    smoothed = SmoothedTable(table, neighbours, weights, smoothing=0.4)()
    assert not smoothed[0].any()
    torch.testing.assert_close(smoothed[1:], expected)


def test_smoothings_gradient_is_the_transposed_graphs():
    rng = np.random.default_rng(3)
    neighbours, weights = nearest_items(rng.normal(size=(N, E)).astype(np.float32), 4, temperature=0.5)
    dense = torch.zeros(N, N).scatter_(1, torch.from_numpy(neighbours), torch.from_numpy(weights))
    table, upstream = IdTable(N, D), torch.from_numpy(rng.normal(size=(N, D)).astype(np.float32))
    (SmoothedTable(table, neighbours, weights, smoothing=0.3)()[1:] * upstream).sum().backward()
    torch.testing.assert_close(table.embedding.grad, (0.7 * torch.eye(N) + 0.3 * dense).T @ upstream)


def test_nearest_items_are_the_others_by_cosine():
    rows = np.array([[1, 0], [2, 0.1], [0, 3], [0.1, 1], [-1, 0]], np.float32)
    neighbours, weights = nearest_items(rows, 2, temperature=0.1)
    assert neighbours[:4, 0].tolist() == [1, 0, 3, 2]
    assert all(item not in row for item, row in enumerate(neighbours.tolist()))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert (weights[:, 0] >= weights[:, 1]).all()


@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_do_not_change_the_neighbours(block):
    rows = np.random.default_rng(5).normal(size=(30, E)).astype(np.float32)
    neighbours, weights = nearest_items(rows, 5, temperature=0.1)
    again = nearest_items(rows, 5, temperature=0.1, block=block)
    np.testing.assert_array_equal(again[0], neighbours)
    np.testing.assert_allclose(again[1], weights, rtol=1e-5)


def test_there_are_no_more_neighbours_than_other_items():
    neighbours, _ = nearest_items(np.eye(3, dtype=np.float32), 10, temperature=0.1)
    assert [sorted(row) for row in neighbours.tolist()] == [[1, 2], [0, 2], [0, 1]]


def test_knowledge_without_direction_has_finite_weights():
    _, weights = nearest_items(np.zeros((4, E), np.float32), 2, temperature=0.1)
    np.testing.assert_array_equal(weights, np.full((4, 2), 0.5, np.float32))
