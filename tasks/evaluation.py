"""Stage 8: full-ranking evaluation of a recommender, or of the rows that learn nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from p2rec_core.backbones.registry import encoder_entry
from p2rec_core.errors import DataError
from p2rec_core.settings.pipeline import EvaluationSettings
from p2rec_core.settings.sequence_model import RecommenderSettings, Variant
from storage.artefacts import ArtefactRef
from tasks.arrays import ragged, targets
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from p2rec_core.evaluation import SplitRanks
    from p2rec_core.sequences import RaggedSequences


def held_out_inputs(ingest: ArtefactRef) -> dict[str, tuple[ArtefactRef, str]]:
    """What every evaluation reads of a dataset, see ``StageCall.inputs``: histories, held-out items, the catalogue."""
    return {file: (ingest, file) for file in ("sequences", "validation", "test", "items")}


def evaluation_call(
    settings: EvaluationSettings,
    recommender: RecommenderSettings,
    variant: Variant,
    *,
    ingest: ArtefactRef,
    model: ArtefactRef,
) -> StageCall:
    """The evaluation of a trained recommender."""
    encoder = recommender.encoder

    def compute(context: StageContext) -> dict[str, Any]:
        from p2rec_core.evaluation import recommender_ranks
        from p2rec_core.runtime import prepared_device
        from p2rec_core.training.recommender import EncoderShape, load_recommender

        device = prepared_device(context.runtime.device, context.runtime.threads)
        shape = EncoderShape(encoder.backbone, encoder.options())
        loaded = load_recommender(context.tensors("model"), shape, device)

        def rank(history: "RaggedSequences", wanted: "NDArray[np.int32]") -> "SplitRanks":
            return recommender_ranks(loaded, history, wanted, max_length=encoder.max_length, device=device)

        return evaluate(context, settings, {(encoder.backbone, str(variant)): rank})

    return StageCall(
        stage="evaluation",
        module="tasks.evaluation",
        settings=settings.model_dump(mode="json")
        | {"encoder": encoder.model_dump(mode="json"), "variant": str(variant)},
        inputs=held_out_inputs(ingest) | {"model": (model, "model")},
        compute=compute,
        extra_modules=(encoder_entry(encoder.backbone).module,),
    )


def no_learning_call(settings: EvaluationSettings, *, ingest: ArtefactRef) -> StageCall:
    """The evaluation of the rows that learn nothing."""

    def compute(context: StageContext) -> dict[str, Any]:
        from p2rec_core.evaluation import NO_LEARNING, no_learning_ranks

        n_items = context.table("items", ["item_idx"]).num_rows

        def ranker(method: str) -> Callable[..., "SplitRanks"]:
            return lambda history, wanted: no_learning_ranks(method, history, wanted, n_items)

        return evaluate(context, settings, {(method, "none"): ranker(method) for method in NO_LEARNING})

    return StageCall(
        stage="evaluation",
        module="tasks.evaluation",
        settings=settings.model_dump(mode="json") | {"variant": "none"},
        inputs=held_out_inputs(ingest),
        compute=compute,
    )


def evaluate(
    context: StageContext,
    settings: EvaluationSettings,
    rankers: "dict[tuple[str, str], Callable[[RaggedSequences, NDArray[np.int32]], SplitRanks]]",
) -> dict[str, Any]:
    """Rank both splits with every ranker and write ``user_ranks`` and ``metrics``.

    Args:
        context: Has ``held_out_inputs``.
        settings: Cut-offs.
        rankers: By method and variant: histories and targets, int32 (users,), 0 = none, to ranks.

    Returns:
        Facts for the manifest: the metrics, and how many test targets there are and how many of them no training
        part holds.

    Raises:
        DataError: No user has a test item.
    """
    from p2rec_core.ranking import NOT_ELIGIBLE, rank_metrics

    training = ragged(context.table("sequences"))
    validation = targets(context.table("validation"), len(training))
    test = targets(context.table("test"), len(training))
    if not (test > 0).any():
        raise DataError(
            "No user has the three interactions that a training, a validation and a test item take.",
            remedy="Import longer histories.",
        )
    splits = {"validation": (training, validation), "test": (training.appended(validation), test)}
    parts: list[pa.Table] = []
    metrics: list[dict[str, Any]] = []
    for (method, variant), rank in rankers.items():
        for split, (history, wanted) in splits.items():
            context.progress(len(parts), 4 * len(rankers), f"{method} {variant}: {split}")
            result = rank(history, wanted)
            for seen, ranks in (("keep", result.keep), ("mask", result.mask)):
                names = {"method": method, "variant": variant, "split": split, "seen": seen}
                parts.append(_rank_table(result.users, ranks, names, NOT_ELIGIBLE))
                metrics.extend(
                    names | {"metric": metric, "k": k, "value": value, "n_users": len(ranks)}
                    for (metric, k), value in rank_metrics(ranks, settings.cutoffs).items()
                )
    context.writer.table("user_ranks", pa.concat_tables(parts))
    context.writer.table(
        "metrics",
        pa.Table.from_pylist(metrics).cast(
            pa.schema(
                [(n, pa.string()) for n in ("method", "variant", "split", "seen", "metric")]
                + [("k", pa.int32()), ("value", pa.float64()), ("n_users", pa.int32())]
            )
        ),
    )
    n_items = context.table("items", ["n_train"]).column("n_train").to_numpy()
    return {
        "metrics": metrics,
        "n_test_users": int((test > 0).sum()),
        "n_cold_test_targets": int((n_items[test[test > 0] - 1] == 0).sum()),
    }


def _rank_table(users: Any, ranks: Any, names: dict[str, str], not_eligible: int) -> pa.Table:
    columns: dict[str, Any] = {"user_idx": pa.array((users + 1).astype(np.int32))}
    columns |= {name: pa.array([value] * len(users), pa.string()) for name, value in names.items()}
    columns["rank"] = pa.array(ranks, mask=ranks == not_eligible)
    return pa.table(columns)
