"""Serve the flows: ``python -m deployments.serve`` (or ``make serve``).

The process registers the deployments with the Prefect server of the environment (``PREFECT_API_URL``; without one
Prefect starts a temporary server) and runs what is triggered in the UI, by the API or by the nightly schedule.
"""

import os
from typing import Any

from prefect import serve

from flows.experiment import experiment
from flows.pipeline import pipeline, rerun_stage

SCHEDULE_VARIABLE = "P2REC_NIGHTLY_CRON"
"""Cron expression (UTC) of the nightly pipeline; unset, nothing is scheduled."""

DATASET_VARIABLE = "P2REC_NIGHTLY_DATASET"
"""Dataset of the nightly pipeline; ``sample`` if unset."""


def deployments() -> list[Any]:
    """The pipeline, with a nightly schedule where one is set, the rerun of one stage, and experiments.

    At most one run of each is active: a second one waits.
    """
    cron = os.environ.get(SCHEDULE_VARIABLE)
    dataset = os.environ.get(DATASET_VARIABLE, "sample")
    return [
        pipeline.to_deployment(
            "pipeline",
            cron=cron,
            parameters={"dataset": dataset},
            concurrency_limit=1,
            tags=["p2rec"],
            description="All eight stages on a dataset; what is in the store is verified and reused.",
        ),
        rerun_stage.to_deployment(
            "stage",
            parameters={"dataset": dataset, "stage": "clusters"},
            concurrency_limit=1,
            tags=["p2rec"],
            description="One stage ad hoc, with or without what depends on it.",
        ),
        experiment.to_deployment(
            "experiment",
            parameters={"name": "sample"},
            concurrency_limit=1,
            tags=["p2rec"],
            description="Every cell of a matrix of datasets, backbones, arms and seeds that is not in the store.",
        ),
    ]


def main() -> None:
    """Serve until interrupted."""
    serve(*deployments())


if __name__ == "__main__":
    main()
