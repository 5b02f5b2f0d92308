"""One measurement of P2Rec's ingest: what peers/pandas_run.py does with pandas.

    python benchmarks/ingest_run.py REQUEST.json RESULT.json

The request has ``interactions`` (an atomic file) and ``settings``.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import clock
import numpy as np
import pyarrow as pa
from memory import peak_rss_bytes

from storage.ingest.pipeline import IngestResult, ingest


def digest(result: IngestResult) -> str:
    """sha256 of sequences, validation and test items, as int32 one behind the other."""
    items: pa.ListArray = result.sequences["items"].combine_chunks()
    columns = [items.value_lengths(), items.flatten(), result.validation["item_idx"], result.test["item_idx"]]
    total = hashlib.sha256()
    for column in columns:
        total.update(np.asarray(column, np.int32).tobytes())
    return total.hexdigest()


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request says."""
    begun = clock.now()
    result = ingest(Path(request["interactions"]), **request["settings"])
    ingest_s = clock.now() - begun
    return {
        "ingest_s": ingest_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "n_rows": result.counts["n_rows"],
        "n_users": result.users.num_rows,
        "n_items": result.items.num_rows,
        "n_interactions": result.interactions.num_rows,
        "digest": digest(result),
    }


def main() -> None:
    """Read the request, measure, write the result."""
    request_file, result_file = map(Path, sys.argv[1:3])
    result_file.write_text(json.dumps(measured(json.loads(request_file.read_text()))))


if __name__ == "__main__":
    main()
