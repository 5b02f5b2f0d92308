"""What holds for every encoder of the registry."""

import ast
import importlib
import inspect
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from p2rec_core.backbones.base import SequenceEncoder, left_padded, make_encoder
from p2rec_core.backbones.registry import DEFAULT_BACKBONE, ENCODERS, encoder_entry
from p2rec_core.errors import SettingsError
from p2rec_core.fusion import IdTable
from p2rec_core.ranking import rank_metrics, ranks_of_users
from p2rec_core.recommender import Recommender, recommender_scorer
from p2rec_core.settings.sequence_model import EncoderSettings
from p2rec_core.training.recommender import load_recommender

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CAUSAL = ("sasrec", "gru4rec", "caser")
QUICK = {"learning_rate": 2e-2, "dropout": 0.0, "patience": None, "warmup_steps": 0, "weight_decay": 0.0}


def encoder_class(backbone: str) -> type[SequenceEncoder]:
    return getattr(importlib.import_module(ENCODERS[backbone].module), ENCODERS[backbone].name)


@pytest.fixture
def build(tiny_shapes):
    def build(backbone: str) -> SequenceEncoder:
        torch.manual_seed(3)
        model = tiny_shapes[backbone].build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.eval()

    return build


@pytest.mark.parametrize("backbone", ENCODERS)
def test_defaults_name_what_the_constructor_takes(backbone):
    entry = encoder_entry(backbone)
    parameters = inspect.signature(encoder_class(backbone)).parameters
    assert set(parameters) == set(entry.defaults)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert {"hidden_size", "max_length"} <= set(entry.defaults) <= set(EncoderSettings.model_fields)
    made = make_encoder(backbone, **entry.defaults)
    assert (made.hidden_size, made.max_length) == (entry.defaults["hidden_size"], entry.defaults["max_length"])


@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_module_holds_one_encoder(backbone):
    # the key of an artefact has the module's code, not the name of the class
    entry = ENCODERS[backbone]
    module = importlib.import_module(entry.module)
    here = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, SequenceEncoder) and value.__module__ == entry.module
    ]
    assert here == [entry.name]
    assert len({other.module for other in ENCODERS.values()}) == len(ENCODERS)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_causal_encoder_has_states_and_another_a_final_one(backbone):
    kind = encoder_class(backbone)
    assert kind.causal == (backbone in CAUSAL)
    assert "forward" in vars(kind) if kind.causal else "final" in vars(kind)


def test_the_registry_loads_no_model_code():
    code = "import sys, p2rec_core.backbones.registry, p2rec_core.settings.pipeline; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
    source = (ROOT / "p2rec_core/backbones/registry.py").read_text(encoding="utf-8")
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.startswith("p2rec_core.backbones")]
    assert DEFAULT_BACKBONE in ENCODERS


@pytest.mark.parametrize(
    ("name", "hint"), [("sasrek", " (did you mean sasrec?)"), ("fmlp-rec", " (did you mean fmlp_rec?)"), ("x", "")]
)
def test_an_unknown_backbone_is_named(name, hint):
    with pytest.raises(SettingsError) as caught:
        make_encoder(name, hidden_size=8, max_length=4)
    assert caught.value.problem == f"There is no backbone {name!r}{hint}."
    assert caught.value.remedy == "Choose one of: caser, fmlp_rec, gru4rec, sasrec."


@pytest.mark.parametrize("backbone", CAUSAL)
def test_a_later_item_changes_no_earlier_state(build, backbone):
    model = build(backbone)
    vectors = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([5, 5])
    before = model(vectors, lengths)
    for position in range(1, 5):
        changed = vectors.clone()
        changed[0, position:] = torch.randn(5 - position, 16, generator=torch.Generator().manual_seed(position))
        after = model(changed, lengths)
        torch.testing.assert_close(after[0, :position], before[0, :position], rtol=0, atol=1e-6)
        assert not torch.allclose(after[0, position], before[0, position])


@pytest.mark.parametrize("backbone", CAUSAL)
def test_a_state_is_the_final_one_of_its_prefix(build, backbone):
    model = build(backbone)
    vectors = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    states = model(vectors, torch.tensor([5, 5]))
    for n in range(1, 6):
        final = model.final(vectors[:, :n], torch.tensor([n, n]))
        torch.testing.assert_close(final, states[:, n - 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", CAUSAL)
def test_a_final_state_does_not_depend_on_what_stands_behind_it(build, backbone):
    model = build(backbone)
    vectors = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([1, 3, 5, 0])
    states, final = model(vectors, lengths), model.final(vectors, lengths)
    for row, length in enumerate([1, 3, 5]):
        torch.testing.assert_close(final[row], states[row, length - 1], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(final[3]).all()


@pytest.mark.parametrize("backbone", ENCODERS)
def test_scores_are_the_same_in_pieces_and_in_memory_that_is_given(build, backbone, monkeypatch):
    model = Recommender(IdTable(30, 16), build(backbone), learn_repeats=True).eval()
    table = model.item_table()
    items = torch.randint(1, 31, (7, 5), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((7,), 5)
    whole = model.scores(items, lengths, table)
    called = []
    final = model.encoder.final
    monkeypatch.setattr(model.encoder, "final", lambda *given: called.append(len(given[0])) or final(*given))
    monkeypatch.setattr("p2rec_core.recommender.PIECE_VALUES", 3 * 5 * model.encoder.widest(5))
    memory = torch.full((7, 30), torch.nan)
    assert model.scores(items, lengths, table, memory).data_ptr() == memory.data_ptr()
    assert called == [3, 3, 1]
    torch.testing.assert_close(memory, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_scores_do_not_depend_on_the_neighbours(build, backbone):
    model = Recommender(IdTable(30, 16), build(backbone)).eval()
    with torch.no_grad():
        model.item_table.embedding.mul_(50)
    table = model.item_table()
    items = torch.tensor([[3, 7, 0, 0, 0], [1, 2, 4, 5, 6], [0, 0, 0, 0, 0], [9, 0, 0, 0, 0]])
    lengths = torch.tensor([2, 5, 0, 1])
    together = model.scores(items, lengths, table)
    assert together.shape == (4, 30)
    for row, length in ((0, 2), (1, 5), (3, 1)):
        alone = model.scores(items[row : row + 1, :length], lengths[row : row + 1], table)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
        assert alone.std() > 0
    # the order of rows is nothing either
    torch.testing.assert_close(model.scores(items.flip(0), lengths.flip(0), table).flip(0), together)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_user_without_items_gets_zeros(build, backbone):
    model = Recommender(IdTable(30, 16), build(backbone)).eval()
    table = model.item_table()
    scores = model.scores(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), table)
    assert scores.shape == (2, 30)
    assert (scores == 0).all()


class _Infinite(SequenceEncoder):
    """States that overflow."""

    def forward(self, vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.full_like(vectors, float("inf"))


def test_zeros_for_nobody_are_zeros_whatever_the_state():
    model = Recommender(IdTable(3, 2), _Infinite(hidden_size=2, max_length=4))
    assert not model.scores(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]), model.item_table()).any()


def hit_rate(trained, sequences, targets, shape, k: int = 1) -> float:
    model = load_recommender(trained.tensors, shape, CPU)
    scorer = recommender_scorer(model, sequences, max_length=shape.max_length, device=CPU)
    keep = ranks_of_users(scorer, targets, seen=("keep",))["keep"]
    return rank_metrics(keep, (k,))["HR", k]


@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_known_succession_is_learned(cycles, train, tiny_shapes, backbone):
    sequences, targets = cycles(100, 20)
    trained = train(sequences, None, 20, backbone=backbone, **QUICK | {"max_epochs": 16})
    assert hit_rate(trained, sequences, targets, tiny_shapes[backbone]) > 0.95
    losses = [value for _, name, value in trained.fit.history if name == "loss"]
    assert losses[0] > 2.0
    assert losses[-1] < 0.4


@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_shuffled_succession_is_not(cycles, train, tiny_shapes, backbone):
    sequences, targets = cycles(100, 20, shuffled=True)
    trained = train(sequences, None, 20, backbone=backbone, **QUICK | {"max_epochs": 16})
    # chance is 1 / 20; three standard errors of 100 users
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert hit_rate(trained, sequences, targets, tiny_shapes[backbone]) < bound


@pytest.mark.parametrize("backbone", [name for name in ENCODERS if name != DEFAULT_BACKBONE])
@pytest.mark.parametrize("variant", ["ci", "p2rec"])
def test_every_variant_learns_with_every_encoder(cycles, train, given, tiny_shapes, backbone, variant):
    sequences, targets = cycles(100, 20)
    trained = train(sequences, None, 20, backbone=backbone, **QUICK | {"max_epochs": 16} | given(variant, 20))
    assert hit_rate(trained, sequences, targets, tiny_shapes[backbone]) > 0.9


@pytest.mark.parametrize("backbone", ENCODERS)
def test_what_is_stored_scores_as_what_was_trained(cycles, train, tiny_shapes, backbone):
    sequences, targets = cycles(60, 24)
    one, other = (train(sequences, targets, 24, backbone=backbone, max_epochs=2) for _ in range(2))
    assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors | other.tensors)
    validated = [v for epoch, n, v in one.fit.history if (epoch, n) == (one.fit.best_epoch, "HR@10")]
    assert hit_rate(one, sequences, targets, tiny_shapes[backbone], k=10) == validated[0]


@pytest.mark.parametrize("length", [1, 3, 6])
def test_left_padding_keeps_the_last_items_and_their_gradients(length):
    lengths = torch.tensor([4, 0, 1, 2])
    vectors = torch.arange(1.0, 33).view(4, 4, 2) * (torch.arange(4)[None] < lengths[:, None])[..., None]
    vectors.requires_grad_()
    rows = left_padded(vectors, lengths, length)
    assert rows.shape == (4, length, 2)
    (rows * rows).sum().backward()
    for row, n in enumerate(lengths.tolist()):
        kept = min(n, length)
        assert not rows[row, : length - kept].any()
        torch.testing.assert_close(rows[row, length - kept :], vectors[row, n - kept : n])
        expected = 2 * vectors[row].detach()
        expected[: n - kept] = 0
        torch.testing.assert_close(vectors.grad[row], expected)
