"""Stage 4: training sequences x clusters → user preference vectors."""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, ragged, vector_array
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from p2rec_core.preferences import Grouping
    from p2rec_core.sequences import RaggedSequences


def preferences_call(*, ingest: ArtefactRef, clusters: ArtefactRef) -> StageCall:
    """The preference vectors of all users."""

    def compute(context: StageContext) -> dict[str, Any]:
        from p2rec_core.preferences import preference_vectors

        sequences = ragged(context.table("sequences"))
        n_clusters = context.table("centroids", ["cluster"]).num_rows
        context.progress(0, 1, f"preferences of {len(sequences)} users over {n_clusters} clusters")
        preferences = preference_vectors(sequences, context.table("clusters").column("cluster").to_numpy(), n_clusters)
        context.writer.table(
            "user_preferences",
            pa.table(
                {
                    "user_idx": numbering(len(sequences)),
                    "n_train": pa.array(sequences.lengths.astype("int32")),
                    "preference": vector_array(preferences),
                }
            ),
        )
        return {"n_users": len(sequences), "mean_clusters_per_user": float((preferences > 0).sum(1).mean())}

    return StageCall(
        stage="preferences",
        module="tasks.preferences",
        settings={},
        inputs={
            "sequences": (ingest, "sequences"),
            "clusters": (clusters, "item_clusters"),
            "centroids": (clusters, "centroids"),
        },
        compute=compute,
    )


def finer_groupings(context: StageContext, sequences: "RaggedSequences") -> "list[Grouping]":
    """The finer groupings of items, in the order they were asked for.

    Args:
        context: Has the input ``finer``.
        sequences: Training parts of all users.
    """
    from p2rec_core.preferences import Grouping

    table = context.table("finer")
    sizes = table.column("n_clusters").to_numpy()
    cluster = table.column("cluster").to_numpy()
    return [Grouping(sequences, cluster[sizes == k], int(k)) for k in dict.fromkeys(sizes.tolist())]
