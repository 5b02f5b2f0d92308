"""The training loop: what it learns, what it keeps, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from p2rec_core.clustering import cluster_items
from p2rec_core.errors import DataError, ModelError, SettingsError
from p2rec_core.ranking import rank_metrics, ranks_of_users
from p2rec_core.recommender import recommender_scorer
from p2rec_core.training import loop
from p2rec_core.training.adam import Adam, ParameterGroup
from p2rec_core.training.loop import FitSettings, fit
from p2rec_core.training.recommender import EncoderShape, load_recommender
from storage.sample import generate_sample

CPU = torch.device("cpu")
QUICK = {"learning_rate": 2e-2, "dropout": 0.0, "patience": None, "warmup_steps": 0, "weight_decay": 0.0}


def hit_rate(trained, sequences, targets, shape, k: int = 1) -> float:
    model = load_recommender(trained.tensors, shape, CPU)
    scorer = recommender_scorer(model, sequences, max_length=shape.max_length, device=CPU)
    keep = ranks_of_users(scorer, targets, seen=("keep",))["keep"]
    return rank_metrics(keep, (k,))["HR", k]


def test_a_known_succession_is_learned(cycles, train, tiny_shape):
    sequences, targets = cycles(120, 20)
    trained = train(sequences, None, 20, **QUICK | {"max_epochs": 14})
    assert hit_rate(trained, sequences, targets, tiny_shape) > 0.95
    losses = [value for _, name, value in trained.fit.history if name == "loss"]
    assert losses[0] > 2.0
    assert losses[-1] < 0.3


def test_a_shuffled_succession_is_not(cycles, train, tiny_shape):
    sequences, targets = cycles(120, 20, shuffled=True)
    trained = train(sequences, None, 20, **QUICK | {"max_epochs": 14})
    # chance is 1 / 20; three standard errors of 120 users
    assert hit_rate(trained, sequences, targets, tiny_shape) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)


@pytest.mark.parametrize("variant", ["ci", "p2rec"])
def test_every_variant_learns(cycles, train, given, tiny_shape, variant):
    sequences, targets = cycles(120, 20)
    extra = given(variant, 20, smoothing=0.2)
    trained = train(sequences, None, 20, **QUICK | {"max_epochs": 14} | extra)
    assert hit_rate(trained, sequences, targets, tiny_shape) > 0.95
    assert trained.tensors["item_vectors"].shape == (20, 16)


@pytest.mark.parametrize("variant", ["base", "ci", "p2rec"])
def test_every_variant_starts_with_the_spread_that_is_set(cycles, train, given, variant):
    sequences, _ = cycles(20, 200)
    still = {"learning_rate": 1e-12, "max_epochs": 1, "patience": None, "item_std": 0.3}
    vectors = train(sequences, None, 200, **still | given(variant, 200, "init")).tensors["item_vectors"]
    # +CI is the sum of two
    assert vectors.std() == pytest.approx(0.3 * (math.sqrt(2) if variant == "ci" else 1), rel=0.15)


def test_categories_of_the_sample_are_found_in_its_item_vectors(ragged, train):
    sample = generate_sample(n_users=250, n_items=60, n_categories=4, misplaced=0.0)
    sequences = ragged([(row + 1).tolist() for row in sample.sequences])
    trained = train(sequences, None, 60, **QUICK | {"max_epochs": 12, "max_length": 20, "batch_positions": 512})
    found = cluster_items(
        trained.tensors["item_vectors"],
        np.ones(60, bool),
        n_clusters=4,
        n_init=4,
        max_iter=100,
        normalise=True,
        seed=1,
    )
    assert adjusted_rand_score(sample.category, found.cluster) > 0.7


def test_two_runs_are_bit_identical(cycles, train):
    sequences, targets = cycles(40, 12)
    one, other = (train(sequences, targets, 12) for _ in range(2))
    assert one.fit.history == other.fit.history
    assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors | other.tensors)
    third = train(sequences, targets, 12, seed=6)
    assert not np.array_equal(one.tensors["item_vectors"], third.tensors["item_vectors"])


def test_what_is_stored_scores_as_what_was_trained(cycles, train, tiny_shape):
    sequences, targets = cycles(40, 12)
    trained = train(sequences, targets, 12)
    validated = [v for epoch, n, v in trained.fit.history if (epoch, n) == (trained.fit.best_epoch, "HR@10")]
    assert hit_rate(trained, sequences, targets, tiny_shape, k=10) == validated[0]


def test_weights_of_another_shape(cycles, train, tiny_shape):
    trained = train(*cycles(20, 12), 12, max_epochs=1)
    wrong = EncoderShape("sasrec", tiny_shape.options | {"hidden_size": 8})
    with pytest.raises(ModelError, match=r"(?s)do not fit a sasrec of hidden_size 8.*the artefact's manifest"):
        load_recommender(trained.tensors, wrong, CPU)


def test_an_unknown_backbone(cycles, train):
    with pytest.raises(SettingsError, match="There is no backbone 'gru'"):
        train(*cycles(20, 12), 12, backbone="gru")


def test_nothing_to_learn_from(ragged, train):
    with pytest.raises(DataError, match="No user has two or more training items"):
        train(ragged([[1], [2], []]), None, 2, patience=None)


class Scripted:
    """A least-squares fit whose validation follows a script."""

    def __init__(self, script: list[float] | None = None, *, cut: int = 1, bad: tuple[int, int] | None = None) -> None:
        self.model = torch.nn.Linear(3, 1)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.normal(size=(24, 3)).astype(np.float32))
        self.script, self.cut, self.bad = script, cut, bad
        self.epoch, self.seen = 0, []

    def steps(self, epoch):
        self.epoch = epoch
        order = np.random.default_rng((9, epoch)).permutation(24)
        return [np.array_split(step, self.cut) for step in np.array_split(order, 4)]

    def weight(self, batch):
        return float(len(batch))

    def loss(self, batch):
        self.seen.append((self.epoch, len(batch)))
        loss = ((self.model(self.x[batch]) - 1) ** 2).sum()
        step = (len(self.seen) - 1) // self.cut % 4
        return loss * float("nan") if (self.epoch, step) == self.bad else loss

    def validate(self):
        return {} if self.script is None else {"score": self.script[self.epoch]}


def run(objective: Scripted, *, snapshots: list | None = None, **changes):
    settings = FitSettings(**{"max_epochs": 8, "patience": 2, "metric": "score", "seed": 1} | changes)

    def progress(done: int, total: int, message: str) -> None:
        if snapshots is not None:
            snapshots.append((done, total, objective.model.weight.detach().clone()))

    groups = [ParameterGroup(list(objective.model.parameters()), 0.05)]
    return fit(objective.model, objective, groups, settings, device=CPU, progress=progress)


def test_early_stopping_keeps_the_best_epoch():
    objective = Scripted([0.1, 0.3, 0.2, 0.4, 0.4, 0.1, 0.9, 0.9])
    snapshots = []
    result = run(objective, snapshots=snapshots)
    # epoch 4 is the best; 5 only equals it and 6 is worse, so that 7 is never reached
    assert (result.best_epoch, result.n_epochs, result.n_steps) == (4, 6, 24)
    assert [v for _, name, v in result.history if name == "score"] == [0.1, 0.3, 0.2, 0.4, 0.4, 0.1]
    at_best = [weight for done, _, weight in snapshots if done == 16][-1]
    assert torch.equal(result.tensors["weight"], at_best)
    assert torch.equal(objective.model.weight, at_best)
    assert not objective.model.training
    assert all(done <= total for done, total, _ in snapshots)


def test_without_patience_the_last_epoch_is_kept():
    objective = Scripted(None)
    snapshots = []
    result = run(objective, snapshots=snapshots, patience=None, metric=None, max_epochs=3)
    assert (result.best_epoch, result.n_epochs) == (3, 3)
    assert torch.equal(result.tensors["weight"], snapshots[-1][2])
    assert {name for _, name, _ in result.history} == {"loss"}


def test_the_loss_of_an_epoch_is_the_mean_over_its_examples():
    objective = Scripted(None)
    start = [p.detach().clone() for p in objective.model.parameters()]
    expected = float(((objective.x @ start[0].T + start[1] - 1) ** 2).mean())
    groups = [ParameterGroup(list(objective.model.parameters()), 0.0)]
    settings = FitSettings(max_epochs=1, patience=None, metric=None, seed=1)
    result = fit(objective.model, objective, groups, settings, device=CPU)
    assert result.history == [(1, "loss", pytest.approx(expected, rel=1e-5))]


@pytest.mark.parametrize("cut", [2, 3, 6])
def test_micro_batches_sum_to_the_steps_gradient(cut):
    gradients = {}
    for pieces in (1, cut):
        torch.manual_seed(0)
        objective = Scripted(None, cut=pieces)
        torch.nn.init.constant_(objective.model.bias, 0.25)
        found = gradients[pieces] = {}
        for name, parameter in objective.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name, found=found: found.__setitem__(name, p.grad.clone())
            )
        groups = [ParameterGroup(list(objective.model.parameters()), 0.0)]
        fit(
            objective.model,
            objective,
            groups,
            FitSettings(max_epochs=1, patience=None, metric=None, seed=1),
            device=CPU,
        )
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[cut][name], gradient, rtol=1e-5, atol=1e-6)


def test_gradients_are_bounded():
    norms = []
    objective = Scripted(None)
    settings = FitSettings(max_epochs=1, patience=None, metric=None, seed=1, max_grad_norm=0.01)

    class Watched(Adam):
        def step(self, rate_factor):
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for g in self.groups for p in g.parameters)))
            super().step(rate_factor)

    groups = [ParameterGroup(list(objective.model.parameters()), 0.01)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Adam", Watched)
        fit(objective.model, objective, groups, settings, device=CPU)
    assert norms == [pytest.approx(0.01, rel=1e-3)] * 4


@pytest.mark.parametrize(
    ("cosine", "expected"),
    [
        (False, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (True, [0.25, 0.5, 0.75, *(0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(3, 8))]),
    ],
)
def test_the_learning_rate_rises_and_falls(cosine, expected):
    rates = []
    objective = Scripted(None)

    class Watched(Adam):
        def step(self, rate_factor):
            rates.append(self.groups[0].learning_rate * rate_factor)
            super().step(rate_factor)

    groups = [ParameterGroup(list(objective.model.parameters()), 0.1)]
    settings = FitSettings(max_epochs=2, patience=None, metric=None, seed=1, warmup_steps=3, cosine=cosine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Adam", Watched)
        fit(objective.model, objective, groups, settings, device=CPU)
    assert rates == pytest.approx([0.1 * factor for factor in expected])


def test_a_loss_that_is_not_finite_says_where():
    with pytest.raises(ModelError, match=r"training loss is nan at epoch 2, step 3\. Lower the learning rate"):
        run(Scripted([0.1] * 8, bad=(1, 2)), patience=None)


def test_a_diverging_recommender_says_where(cycles, train):
    sequences, _ = cycles(40, 12)
    with pytest.raises(ModelError, match=r"training loss is (nan|inf) at epoch 1, step \d\. Lower the learning rate"):
        train(sequences, None, 12, learning_rate=1e30, patience=None)
