"""One measurement of an ingest as one would write it with pandas: what ingest_run.py does for P2Rec.

    python pandas_run.py REQUEST.json RESULT.json

The request has ``interactions`` (an atomic file) and ``settings``, P2Rec's. The result is the same tables: k-core,
users numbered in the order of their ids, items by P2Rec's seeded permutation, the last two items of a user split off.
Rows are not checked beyond what pandas' reader does.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[1]))
import clock
from memory import peak_rss_bytes

MIN_SPLIT = 3


def core(events: pd.DataFrame, min_user: int, min_item: int) -> pd.DataFrame:
    """The k-core of interactions."""
    while True:
        users = events["user_id"].map(events["user_id"].value_counts())
        items = events["item_id"].map(events["item_id"].value_counts())
        kept = events[(users >= min_user) & (items >= min_item)]
        if len(kept) == len(events):
            return kept
        events = kept


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request says."""
    settings = request["settings"]
    begun = clock.now()
    events = pd.read_csv(
        request["interactions"],
        sep="\t",
        header=0,
        names=["user_id", "item_id", "timestamp"],
        dtype={"user_id": str, "item_id": str, "timestamp": np.float64},
    )
    n_rows = len(events)
    if settings["drop_duplicates"]:
        events = events.drop_duplicates()
    events = core(events, settings["min_user_interactions"], settings["min_item_interactions"])
    user, users = pd.factorize(events["user_id"], sort=True)
    item, items = pd.factorize(events["item_id"], sort=True)
    numbers = np.random.default_rng(settings["seed"]).permutation(len(items)).astype(np.int32) + np.int32(1)
    events = pd.DataFrame({"user": user, "item": numbers[item], "timestamp": events["timestamp"].to_numpy()})
    events = events.sort_values(["user", "timestamp"], kind="stable")
    by_user = events.groupby("user", sort=False)
    left = by_user.cumcount(ascending=False).to_numpy()
    split = (by_user["item"].transform("size") >= MIN_SPLIT).to_numpy()
    training = events[(left >= 2) | ~split]
    lengths = training.groupby("user", sort=False).size().to_numpy(np.int32)
    validation, test = (events["item"].to_numpy()[split & (left == place)] for place in (1, 0))
    ingest_s = clock.now() - begun

    total = hashlib.sha256()
    for column in (lengths, training["item"].to_numpy(), validation, test):
        total.update(np.asarray(column, np.int32).tobytes())
    return {
        "ingest_s": ingest_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "n_rows": n_rows,
        "n_users": len(users),
        "n_items": len(items),
        "n_interactions": len(events),
        "digest": total.hexdigest(),
    }


def main() -> None:
    """Read the request, measure, write the result."""
    request_file, result_file = map(Path, sys.argv[1:3])
    result_file.write_text(json.dumps(measured(json.loads(request_file.read_text()))))


if __name__ == "__main__":
    main()
