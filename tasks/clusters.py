"""Stage 3: item embeddings → latent categories."""

from typing import Any

import numpy as np
import pyarrow as pa

from p2rec_core.settings.clustering import ClusterSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array, vectors
from tasks.stage import StageCall, StageContext


def clusters_call(settings: ClusterSettings, *, backbone: ArtefactRef) -> StageCall:
    """The grouping of a backbone's items."""

    def compute(context: StageContext) -> dict[str, Any]:
        from p2rec_core.clustering import cluster_items

        table = context.table("embeddings")
        trained = table.column("trained").to_numpy()
        context.progress(0, 1, f"k-means, K = {settings.n_clusters}, over {table.num_rows} items")
        embeddings, options = vectors(table, "embedding"), settings.model_dump(exclude={"n_clusters", "finer"})
        result = cluster_items(embeddings, trained, n_clusters=settings.n_clusters, **options)
        context.writer.table(
            "item_clusters",
            pa.table(
                {
                    "item_idx": numbering(table.num_rows),
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
        finer = []
        for k in settings.finer:
            context.progress(0, 1, f"k-means, K = {k}, over {table.num_rows} items")
            finer.append(cluster_items(embeddings, trained, n_clusters=k, setting="clusters.finer", **options).cluster)
        context.writer.table(
            "finer_clusters",
            pa.table(
                {
                    "item_idx": pa.concat_arrays([numbering(table.num_rows)] * len(finer) or [numbering(0)]),
                    "n_clusters": pa.array(np.repeat(np.array(settings.finer, np.int32), table.num_rows)),
                    "cluster": pa.array(np.concatenate([np.empty(0, np.int32), *finer])),
                }
            ),
        )
        return {
            "n_clusters": settings.n_clusters,
            "inertia": result.inertia,
            "largest": int(result.size.max()),
            "smallest": int(result.size.min()),
            "n_untrained_items": int((~trained).sum()),
        }

    return StageCall(
        stage="clusters",
        module="tasks.clusters",
        settings=settings.model_dump(mode="json"),
        inputs={"embeddings": (backbone, "item_embeddings")},
        compute=compute,
    )
