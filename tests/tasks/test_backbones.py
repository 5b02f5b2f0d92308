"""Another backbone for the recommenders: what is trained, and what of the store is used again."""

import math
from typing import Any

import pytest

from p2rec_core.backbones.registry import ENCODERS
from p2rec_core.settings.pipeline import PipelineSettings, validated
from tasks.stage import Outcome

SMALL: dict[str, dict[str, Any]] = {
    "gru4rec": {"hidden_size": 16, "inner_size": 16, "max_length": 10},
    "caser": {"hidden_size": 16, "window": 3, "n_horizontal": 4, "max_length": 10},
    "fmlp_rec": {"hidden_size": 16, "inner_size": 32, "n_layers": 2, "max_length": 10},
}
OTHERS = sorted(set(ENCODERS) - {"sasrec"})


def settings_with(driver: Any, backbone: str) -> PipelineSettings:
    recommender = driver.QUICK["recommender"] | {"encoder": SMALL[backbone] | {"backbone": backbone}}
    return validated(driver.QUICK | {"recommender": recommender})


@pytest.mark.parametrize("backbone", OTHERS)
def test_another_backbone_reuses_everything_up_to_the_knowledge(copied, driver, backbone):
    settings = settings_with(driver, backbone)
    results = driver.run(settings, copied.source, copied.store)
    cached = {name for name, result in results.items() if result.outcome is Outcome.CACHED}
    assert cached == {n for n in copied.results if n.split(".")[0] not in ("recommender", "evaluation")} | {
        "evaluation.no-learning"
    }
    trained = {name for name, result in results.items() if result.outcome is Outcome.COMPUTED}
    assert trained == {
        f"{stage}.{backbone}.{variant}"
        for stage in ("recommender", "evaluation")
        for variant in ("base", "ci", "p2rec")
    }
    for variant in ("base", "ci", "p2rec"):
        metrics = results[f"evaluation.{backbone}.{variant}"].info["metrics"]
        assert {row["method"] for row in metrics} == {backbone}
        assert {row["variant"] for row in metrics} == {variant}
        assert all(math.isfinite(row["value"]) for row in metrics)
        artefact = copied.store.load(results[f"recommender.{backbone}.{variant}"].ref)
        assert artefact.manifest.settings["encoder"] == settings.recommender.encoder.model_dump()
        assert set(artefact.table("item_embeddings").column("source").to_pylist()) == {backbone}
    again = driver.run(settings, copied.source, copied.store)
    assert {result.outcome for result in again.values()} == {Outcome.CACHED}


@pytest.mark.parametrize("backbone", OTHERS)
def test_items_can_be_clustered_by_another_backbone(copied, driver, backbone):
    section = settings_with(driver, backbone).recommender.model_dump()
    settings = validated(driver.QUICK | {"backbone": section, "recommender": section, "variants": ["base", "ci"]})
    results = driver.run(settings, copied.source, copied.store)
    # stage 2 and Base are one computation for every backbone
    assert results["backbone"].ref == results[f"recommender.{backbone}.base"].ref
    assert results[f"recommender.{backbone}.base"].outcome is Outcome.CACHED
    assert results["clusters"].outcome is Outcome.COMPUTED
