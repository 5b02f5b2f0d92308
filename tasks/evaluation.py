"""Stage 8: full-ranking evaluation of a recommender, or of the rows that learn nothing."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from p2rec_core.backbones.registry import encoder_entry
from p2rec_core.errors import DataError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.settings.pipeline import EvaluationSettings
from p2rec_core.settings.sequence_model import RecommenderSettings, Variant
from storage.artefacts import ArtefactRef
from tasks.arrays import ragged, targets
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from p2rec_core.evaluation import HeldOutRanks
    from p2rec_core.ranking import Scorer
    from p2rec_core.sequences import RaggedSequences

    Ranking = Callable[..., HeldOutRanks]
    """Ranks held-out items, given training parts, validation and test items, and ``progress``."""


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
        from p2rec_core.evaluation import held_out_ranks
        from p2rec_core.recommender import recommender_scorer
        from p2rec_core.runtime import prepared_device
        from p2rec_core.training.recommender import EncoderShape, load_recommender

        device = prepared_device(context.runtime.device, context.runtime.threads)
        shape = EncoderShape(encoder.backbone, encoder.options())
        loaded = load_recommender(context.tensors("model"), shape, device)

        def scorer(history: "RaggedSequences") -> "Scorer":
            return recommender_scorer(loaded, history, max_length=encoder.max_length, device=device)

        return evaluate(context, settings, {(encoder.backbone, str(variant)): partial(held_out_ranks, scorer)})

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
        from p2rec_core.no_learning import NO_LEARNING, no_learning_ranks

        n_items = context.table("items", ["item_idx"]).num_rows
        rankings = {(method, "none"): partial(no_learning_ranks, method, n_items) for method in NO_LEARNING}
        return evaluate(context, settings, rankings)

    return StageCall(
        stage="evaluation",
        module="tasks.evaluation",
        settings=settings.model_dump(mode="json") | {"variant": "none"},
        inputs=held_out_inputs(ingest),
        compute=compute,
    )


def evaluate(
    context: StageContext, settings: EvaluationSettings, rankings: "Mapping[tuple[str, str], Ranking]"
) -> dict[str, Any]:
    """Rank both splits in every way and write ``user_ranks`` and ``metrics``.

    Args:
        context: Has ``held_out_inputs``.
        settings: Cut-offs.
        rankings: By method and variant.

    Returns:
        Facts for the manifest: the metrics, what ``weigh`` adds to the scores of a user's own items, and how many test
        targets there are and how many of them no training part holds.

    Raises:
        DataError: No user has a test item.
        ModelError: A score is not finite.
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
    parts: list[pa.Table] = []
    metrics: list[dict[str, Any]] = []
    biases: list[dict[str, Any]] = []
    for number, ((method, variant), ranking) in enumerate(rankings.items()):

        def told(
            done: int, total: int, message: str, *, number: int = number, name: str = f"{method} {variant}"
        ) -> None:
            context.progress(number * total + done, len(rankings) * total, f"{name}: {message}")

        found = ranking(training, validation, test, progress=told)
        biases.append({"method": method, "variant": variant} | asdict(found.repeat_bias))
        for split, policies in found.ranks.items():
            for seen in SEEN_POLICIES:
                ranks = policies[seen]
                names = {"method": method, "variant": variant, "split": split, "seen": seen}
                parts.append(_rank_table(found.users[split], ranks, names, NOT_ELIGIBLE))
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
        "repeat_bias": biases,
        "n_test_users": int((test > 0).sum()),
        "n_cold_test_targets": int((n_items[test[test > 0] - 1] == 0).sum()),
    }


def _rank_table(users: Any, ranks: Any, names: dict[str, str], not_eligible: int) -> pa.Table:
    columns: dict[str, Any] = {"user_idx": pa.array((users + 1).astype(np.int32))}
    columns |= {name: pa.array([value] * len(users), pa.string()) for name, value in names.items()}
    columns["rank"] = pa.array(ranks, mask=ranks == not_eligible)
    return pa.table(columns)
