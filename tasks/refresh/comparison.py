"""The current recommender and the one that may replace it, both on the new hold-out."""

from typing import Any

import numpy as np

from p2rec_core.backbones.registry import encoder_entry
from p2rec_core.settings.refresh import RefreshSettings
from p2rec_core.settings.sequence_model import RecommenderSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import ragged, targets
from tasks.stage import StageCall, StageContext

_READ = {"gate_metric", "gate_k", "gate_seen"}


def comparison_call(
    settings: RecommenderSettings,
    refresh: RefreshSettings,
    *,
    ingest: ArtefactRef,
    model: ArtefactRef,
    previous: ArtefactRef,
) -> StageCall:
    """The comparison of two recommenders of the same settings, by the last item of each user.

    The metric is over the users whose item the current recommender knows, so that new items alone make no new
    recommender look better. Both rank among all items of today.

    Args:
        settings: The encoder.
        refresh: Metric, cut-off and seen policy.
        ingest: Today's interactions.
        model: The new recommender.
        previous: The current one.
    """
    encoder = settings.encoder

    def compute(context: StageContext) -> dict[str, Any]:
        found = _compare(context, settings, refresh)
        context.writer.json("comparison", found)
        return {"comparison": found}

    return StageCall(
        stage="comparison",
        module="tasks.refresh.comparison",
        settings={
            "encoder": encoder.model_dump(mode="json"),
            "refresh": refresh.model_dump(mode="json", include=_READ),
        },
        inputs={file: (ingest, file) for file in ("sequences", "validation", "test", "items")}
        | {"model": (model, "model"), "previous_model": (previous, "model")},
        compute=compute,
        extra_modules=(encoder_entry(encoder.backbone).module,),
    )


def _compare(context: StageContext, settings: RecommenderSettings, refresh: RefreshSettings) -> dict[str, Any]:
    from p2rec_core.metrics import user_metric
    from p2rec_core.runtime import prepared_device
    from p2rec_core.standing import earlier_scorer, standing
    from p2rec_core.training.recommender import EncoderShape, load_recommender

    encoder, seen = settings.encoder, str(refresh.gate_seen)
    device = prepared_device(context.runtime.device, context.runtime.threads)
    training = ragged(context.table("sequences"))
    history = training.appended(targets(context.table("validation"), len(training)))
    test = targets(context.table("test"), len(training))
    n_items = context.table("items", ["item_idx"]).num_rows
    n_known = len(context.tensors("previous_model")["item_vectors"])
    common = test[test > 0] <= n_known
    found: dict[str, Any] = {
        "metric": f"{refresh.gate_metric}@{refresh.gate_k}",
        "seen": seen,
        "n_users": int((test > 0).sum()),
        "n_compared_users": int(common.sum()),
        "finite": bool(np.isfinite(context.tensors("model")["item_vectors"]).all()),
    }
    for name, source in (("current", "previous_model"), ("new", "model")):
        tensors = context.tensors(source)
        loaded = load_recommender(tensors, EncoderShape(encoder.backbone, encoder.options()), device)
        scorer = earlier_scorer(
            loaded,
            history,
            n_known=len(tensors["item_vectors"]),
            n_items=n_items,
            max_length=encoder.max_length,
            device=device,
        )
        stands = standing(scorer, test, seen=(seen,), k=refresh.gate_k, progress=context.progress)
        values = user_metric(stands.ranks[seen], found["metric"])
        found[name] = {
            "value": float(values[common].mean()) if common.any() else None,
            "all_users": float(values.mean()) if len(values) else None,
            "coverage": stands.coverage,
        }
    return found
