"""What is different from the current snapshot: interactions, clusters and preferences."""

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from storage.artefacts import ArtefactRef
from tasks.arrays import vectors
from tasks.stage import StageCall, StageContext


def changes_call(
    *,
    ingest: ArtefactRef,
    clusters: ArtefactRef,
    preferences: ArtefactRef,
    previous_ingest: ArtefactRef,
    previous_clusters: ArtefactRef,
    previous_preferences: ArtefactRef,
) -> StageCall:
    """The comparison of a refresh's first stages with the current snapshot's, whose numbering they continue."""

    def compute(context: StageContext) -> dict[str, Any]:
        from p2rec_core.alignment import agreement
        from p2rec_core.drift import interaction_changes, preference_drift

        interactions = interaction_changes(_history(context, "previous_"), _history(context, ""))
        before = context.table("previous_clusters", ["cluster"]).column("cluster").to_numpy()
        after = context.table("clusters", ["cluster"]).column("cluster").to_numpy()
        found = agreement(before, after[: len(before)])
        measures: dict[str, float] = asdict(interactions) | {
            "clusters_adjusted_rand": found.adjusted_rand,
            "clusters_kept": found.kept,
            "preference_drift": preference_drift(
                vectors(context.table("previous_preferences", ["preference"]), "preference"),
                vectors(context.table("preferences", ["preference"]), "preference"),
            ),
        }
        context.writer.table(
            "changes",
            pa.table(
                {
                    "measure": pa.array(list(measures), pa.string()),
                    "value": pa.array([float(value) for value in measures.values()], pa.float64()),
                }
            ),
        )
        return {"changes": measures}

    inputs: dict[str, tuple[ArtefactRef, str]] = {}
    for prefix, imported, groups, preferred in (
        ("", ingest, clusters, preferences),
        ("previous_", previous_ingest, previous_clusters, previous_preferences),
    ):
        inputs |= {f"{prefix}{table}": (imported, table) for table in ("interactions", "users", "items")}
        inputs |= {
            f"{prefix}clusters": (groups, "item_clusters"),
            f"{prefix}preferences": (preferred, "user_preferences"),
        }
    return StageCall(stage="changes", module="tasks.refresh.changes", settings={}, inputs=inputs, compute=compute)


def _history(context: StageContext, prefix: str) -> Any:
    from p2rec_core.drift import History

    rows = context.table(f"{prefix}interactions", ["user_idx", "item_idx"])
    return History(
        rows.column("user_idx").to_numpy(),
        rows.column("item_idx").to_numpy(),
        context.table(f"{prefix}users", ["user_idx"]).num_rows,
        context.table(f"{prefix}items", ["item_idx"]).num_rows,
    )
