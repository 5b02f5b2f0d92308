"""Adam against torch's own class."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from p2rec_core.training.adam import Adam, ParameterGroup

RATES, DECAYS = (0.1, 0.02), (0.0, 0.3)


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((3, 4), (5,), (2,))]


def groups(of):
    return [ParameterGroup(of[:1], RATES[0], DECAYS[0]), ParameterGroup(of[1:], RATES[1], DECAYS[1])]


def give_gradients(of, step):
    generator = torch.Generator().manual_seed(100 + step)
    for place, parameter in enumerate(of):
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = None if place == 2 and step < 2 else gradient  # the last one comes in late


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_torch(dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    adam = Adam(groups(ours))
    reference = torch.optim.AdamW(
        [{"params": g.parameters, "lr": g.learning_rate, "weight_decay": g.weight_decay} for g in groups(theirs)],
        fused=True,
    )
    untouched = ours[2].detach().clone()
    for step in range(6):
        factor = 1 / (1 + step)
        for group, rate in zip(reference.param_groups, RATES, strict=True):
            group["lr"] = rate * factor
        give_gradients(ours, step)
        give_gradients(theirs, step)
        adam.step(factor)
        reference.step()
        assert all(map(torch.equal, ours, theirs))
        if step == 1:
            assert torch.equal(ours[2], untouched)
    assert not torch.equal(ours[2], untouched)


def test_a_restored_one_goes_on_as_if_nothing_had_been():
    through, halved = parameters(), parameters()
    named = {f"p{place}": parameter for place, parameter in enumerate(halved)}
    adam, first = Adam(groups(through)), Adam(groups(halved))
    for step in range(2):
        for optimiser, of in ((adam, through), (first, halved)):
            give_gradients(of, step)
            optimiser.step(1.0)
    state = {name: value.clone() for name, value in first.state(named).items()}
    assert sorted(state) == [f"p{place}|{field}" for place in (0, 1) for field in ("exp_avg", "exp_avg_sq", "step")]
    second = Adam(groups(halved))
    second.restore(state, named)
    for step in range(2, 5):
        for optimiser, of in ((adam, through), (second, halved)):
            give_gradients(of, step)
            optimiser.step(0.5)
    assert all(map(torch.equal, through, halved))
    assert float(state["p0|step"]) == 2, "what was restored is a copy"


def test_gradients_are_forgotten():
    of = parameters()
    give_gradients(of, 5)
    Adam(groups(of)).zero_grad()
    assert all(parameter.grad is None for parameter in of)


TRAINING = """
import sys
import numpy as np
from p2rec_core.runtime import prepared_device
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.recommender import EncoderShape, NextItemTraining, train_recommender

options = dict(hidden_size=4, n_layers=1, n_heads=1, inner_size=4, dropout=.1, max_length=4)
how = NextItemTraining(
    learning_rate=.1, weight_decay=0., batch_positions=8, n_negatives=None, max_epochs=1, patience=None,
    warmup_steps=0, cosine=False, seed=1,
)
rows = RaggedSequences(np.array([1, 2, 3, 3, 2, 1], np.int32), np.array([0, 3, 6]))
device = prepared_device("cpu", 1)
train_recommender(rows, None, n_items=3, encoder=EncoderShape("sasrec", options), training=how, device=device)
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_a_training_does_not_load_the_compiler_of_torch():
    """Which takes a second and 70 MiB."""
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
