"""Short ways to ingest a few lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.ingest import IngestResult, RawInteractions, ingest, read_interactions

COLUMNS = {"user_column": "user_id", "item_column": "item_id"}


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write text or bytes to a file and return its path."""

    def write(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def read() -> Callable[..., RawInteractions]:
    def call(path: Path, **changes: Any) -> RawInteractions:
        settings: dict[str, Any] = {
            "format": "csv",
            **COLUMNS,
            "timestamp_column": "timestamp",
            "on_error": "strict",
            "max_rejected": 0.01,
        }
        return read_interactions(path, **(settings | changes))

    return call


@pytest.fixture
def run() -> Callable[..., IngestResult]:
    def call(path: Path, **changes: Any) -> IngestResult:
        settings: dict[str, Any] = {
            "format": "sequences",
            **COLUMNS,
            "timestamp_column": "timestamp",
            "min_user_interactions": 1,
            "min_item_interactions": 1,
            "drop_duplicates": True,
            "on_error": "strict",
            "max_rejected": 0.01,
            "seed": 1,
        }
        return ingest(path, **(settings | changes))

    return call
