"""Stage 3 of a refresh: clusters that start from the current ones and keep their numbers."""

from typing import Any

import numpy as np
import pyarrow as pa

from p2rec_core.settings.clustering import ClusterSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array, vectors
from tasks.stage import StageCall, StageContext


def continued_clusters_call(settings: ClusterSettings, *, backbone: ArtefactRef, previous: ArtefactRef) -> StageCall:
    """The grouping of a backbone's items, beginning with the groups of the current snapshot."""

    def compute(context: StageContext) -> dict[str, Any]:
        return _cluster(context, settings)

    return StageCall(
        stage="clusters",
        module="tasks.refresh.clusters",
        settings=settings.model_dump(mode="json"),
        inputs={
            "embeddings": (backbone, "item_embeddings"),
            "previous": (previous, "item_clusters"),
            "previous_finer": (previous, "finer_clusters"),
        },
        compute=compute,
    )


def _cluster(context: StageContext, settings: ClusterSettings) -> dict[str, Any]:
    from p2rec_core.alignment import agreement, continued_clusters

    table = context.table("embeddings")
    n_items, trained = table.num_rows, table.column("trained").to_numpy()
    embeddings = vectors(table, "embedding")
    options: dict[str, Any] = {"max_iter": settings.max_iter, "normalise": settings.normalise}
    context.progress(0, 1, f"k-means, K = {settings.n_clusters}, over {n_items} items")
    previous = context.table("previous", ["cluster"]).column("cluster").to_numpy()
    result = continued_clusters(embeddings, trained, previous, n_clusters=settings.n_clusters, **options)
    context.writer.table(
        "item_clusters",
        pa.table(
            {
                "item_idx": numbering(n_items),
                "cluster": pa.array(result.cluster),
                "distance": pa.array(result.distance),
            }
        ),
    )
    context.writer.table(
        "centroids",
        pa.table(
            {
                "cluster": pa.array(np.arange(settings.n_clusters, dtype=np.int32)),
                "size": pa.array(result.size),
                "centroid": vector_array(result.centroid),
            }
        ),
    )
    before = context.table("previous_finer")
    sizes, groups = before.column("n_clusters").to_numpy(), before.column("cluster").to_numpy()
    finer = []
    for k in settings.finer:
        context.progress(0, 1, f"k-means, K = {k}, over {n_items} items")
        finer.append(
            continued_clusters(
                embeddings, trained, groups[sizes == k], n_clusters=k, setting="clusters.finer", **options
            ).cluster
        )
    context.writer.table(
        "finer_clusters",
        pa.table(
            {
                "item_idx": pa.concat_arrays([numbering(n_items)] * len(finer) or [numbering(0)]),
                "n_clusters": pa.array(np.repeat(np.array(settings.finer, np.int32), n_items)),
                "cluster": pa.array(np.concatenate([np.empty(0, np.int32), *finer])),
            }
        ),
    )
    found = agreement(previous, result.cluster[: len(previous)])
    return {
        "n_clusters": settings.n_clusters,
        "inertia": result.inertia,
        "largest": int(result.size.max()),
        "smallest": int(result.size.min()),
        "n_untrained_items": int((~trained).sum()),
        "adjusted_rand": found.adjusted_rand,
        "kept": found.kept,
    }
