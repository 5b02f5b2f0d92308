"""On a GPU recommenders come out as on the processor: the same curves, ranks that agree, the same bits every time."""

from typing import Any

import numpy as np
import pytest
import torch

from p2rec_core.backbones.registry import ENCODERS
from p2rec_core.recommender import NextItemObjective
from p2rec_core.training.recommender import EncoderShape, TrainedRecommender, load_recommender, train_recommender


def curve(trained: TrainedRecommender, metric: str) -> list[float]:
    return [value for _, name, value in trained.fit.history if name == metric]


@pytest.mark.parametrize("learn_repeats", [False, True])
@pytest.mark.parametrize("variant", ["base", "ci", "p2rec"])
@pytest.mark.parametrize("backbone", sorted(ENCODERS))
def test_training_agrees_with_that_on_the_processor(
    backbone: str, variant: str, learn_repeats: bool, gpu: torch.device, cycles: Any, train: Any, given: Any
) -> None:
    sequences, targets = cycles(300, 20)
    how = {"backbone": backbone, "dropout": 0.0, "max_epochs": 4, "patience": None, "learn_repeats": learn_repeats}
    how |= given(variant, 20, "init", smoothing=0.3) if variant == "p2rec" else given(variant, 20)
    there, here = (train(sequences, targets, 20, **how, device=device) for device in (gpu, "cpu"))
    np.testing.assert_allclose(curve(there, "loss"), curve(here, "loss"), rtol=2e-3)
    assert curve(there, "loss")[-1] < curve(there, "loss")[0]
    near, own = there.tensors["item_vectors"], here.tensors["item_vectors"]
    assert np.linalg.norm(near - own) < 0.05 * np.linalg.norm(own)


@pytest.mark.parametrize("fusion", ["gate", "sum", "concat", "init"])
def test_every_fusion_is_trained_there(fusion: str, gpu: torch.device, cycles: Any, train: Any, given: Any) -> None:
    sequences, targets = cycles(300, 20)
    how = {"dropout": 0.0, "patience": None} | given("p2rec", 20, fusion)
    there, here = (train(sequences, targets, 20, **how, device=device) for device in (gpu, "cpu"))
    np.testing.assert_allclose(curve(there, "loss"), curve(here, "loss"), rtol=2e-3)


@pytest.mark.parametrize("backbone", sorted(ENCODERS))
@pytest.mark.parametrize("more", [{}, {"bf16": True}, {"n_negatives": 8}])
def test_a_known_succession_is_learned_and_two_trainings_are_one(
    backbone: str, more: dict[str, Any], gpu: torch.device, cycles: Any, tiny_shapes: Any, train_settings: Any
) -> None:
    sequences, targets = cycles(300, 20)
    first, second = (
        train_recommender(
            sequences,
            targets,
            n_items=20,
            encoder=tiny_shapes[backbone],
            training=train_settings(patience=20, **more),
            device=gpu,
        )
        for _ in range(2)
    )
    assert max(curve(first, "HR@10")) > 0.95
    assert max(curve(first, "NDCG@10")) > 0.7
    for name, values in first.tensors.items():
        np.testing.assert_array_equal(values, second.tensors[name], err_msg=name)


@pytest.mark.parametrize("backbone", sorted(ENCODERS))
def test_a_recommender_ranks_there_as_here(backbone: str, gpu: torch.device, cycles: Any, tiny_shapes: Any) -> None:
    sequences, targets = cycles(300, 20)
    shape: EncoderShape = tiny_shapes[backbone]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    tensors = {f"encoder.{name}": value.numpy() for name, value in shape.build().state_dict().items()}
    tensors["item_vectors"] = rng.normal(size=(20, shape.hidden_size)).astype(np.float32)
    metrics = []
    for device in (gpu, torch.device("cpu")):
        model = load_recommender(tensors, shape, device)
        how = {"max_length": 5, "batch_positions": 64, "seed": 1, "device": device}
        objective = NextItemObjective(model, sequences, targets, **how)
        with torch.no_grad():
            metrics.append(objective.validate())
    assert metrics[0] == pytest.approx(metrics[1], abs=0.01)
