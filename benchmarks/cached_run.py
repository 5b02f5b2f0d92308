"""A cached pipeline with Prefect and without, in one process.

    python benchmarks/cached_run.py REQUEST.json RESULT.json

The request has ``store``, whose artefacts are all there, ``dataset``, ``assignments`` and ``rounds``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import clock

from flows.cli.run import quiet_prefect
from flows.prepare import prepared_slots
from p2rec_core.settings.pipeline import pipeline_settings
from storage.artefacts import Store
from tasks.plan import plan


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of verifying all slots, and of a flow run that does the same."""
    quiet_prefect()
    from flows.pipeline import pipeline
    from flows.server import server_for_runs

    store, dataset = Store.open(Path(request["store"])), request["dataset"]
    settings = pipeline_settings(dataset=dataset, assignments=request["assignments"])
    seconds: dict[str, list[float]] = {"verify_s": [], "flow_s": []}
    with server_for_runs():
        for _ in range(request["rounds"] + 1):  # the first one warms up
            begun = clock.now()
            slots, _ = prepared_slots(dataset, settings, store)
            cached = [planned.cached for planned in plan(slots, store, {})]
            between = clock.now()
            pipeline(dataset=dataset, settings=settings, store=store.root)
            seconds["verify_s"].append(between - begun)
            seconds["flow_s"].append(clock.now() - between)
    return {name: values[1:] for name, values in seconds.items()} | {"n_slots": len(cached), "cached": all(cached)}


def main() -> None:
    """Read the request, measure, write the result."""
    request_file, result_file = map(Path, sys.argv[1:3])
    result_file.write_text(json.dumps(measured(json.loads(request_file.read_text()))))


if __name__ == "__main__":
    main()
