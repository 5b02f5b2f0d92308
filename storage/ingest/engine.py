"""A private, in-memory DuckDB that may spill to a folder of its own and reach nothing else."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from p2rec_core.errors import DataError
from storage.spill import spill_folder

Parameters = list[Any] | dict[str, Any]
"""Values by position (``?``) or by name (``$name``)."""

MEMORY_SIZE = re.compile(r"\d+(\.\d+)? ?([KMGT]i?B)", re.IGNORECASE)
"""How DuckDB wants a size of memory, such as ``4GB``."""


class Engine:
    """What the steps of ingest ask of DuckDB.

    Args:
        connection: An open connection.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, statement: str, parameters: Parameters | None = None) -> None:
        """Execute one statement with bound parameters."""
        self._connection.execute(statement, parameters or [])

    def arrow(self, query: str, parameters: Parameters | None = None) -> pa.Table:
        """Answer a query as an Arrow table."""
        return self._connection.sql(query, params=parameters or []).to_arrow_table()

    def batches(self, query: str, n_rows: int) -> Iterator[pa.RecordBatch]:
        """Answer a query bit by bit; nothing else may be asked until the end of it."""
        yield from self._connection.sql(query).to_arrow_reader(n_rows)

    def rows(self, query: str, parameters: Parameters | None = None) -> list[tuple[Any, ...]]:
        """Answer a small query as Python tuples."""
        return list(self._connection.execute(query, parameters or []).fetchall())

    def number(self, query: str) -> int:
        """Answer a query for one whole number; no row or NULL is 0."""
        answer = self.rows(query)
        return int(answer[0][0] or 0) if answer else 0

    @contextmanager
    def table(self, name: str, table: pa.Table) -> Iterator[None]:
        """Make an Arrow table readable under a name for a while."""
        self._connection.register(name, table)
        try:
            yield
        finally:
            self._connection.unregister(name)


@contextmanager
def open_engine(memory_limit: str | None) -> Iterator[Engine]:
    """Open an engine and clean up behind it.

    Args:
        memory_limit: Most memory to use before spilling to disk, such as ``4GB``; None is DuckDB's default.

    Raises:
        DataError: What is done with the engine needs more memory, even with spilling.
        StoreError: There is no place for temporary files.
        ValueError: ``memory_limit`` is no number with a unit.
    """
    if memory_limit is not None and not MEMORY_SIZE.fullmatch(memory_limit):
        raise ValueError(f"memory_limit {memory_limit!r} is not a size such as '4GB'")
    with spill_folder() as folder:
        config = {
            "temp_directory": str(folder),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
        }
        if memory_limit is not None:
            config["memory_limit"] = memory_limit
        connection = duckdb.connect(":memory:", config=config)
        try:
            connection.execute("SET enable_external_access = false")
            connection.execute("SET enable_progress_bar = false")
            yield Engine(connection)
        except duckdb.OutOfMemoryException as error:
            first = str(error).splitlines()[0].rstrip(".")
            raise DataError(
                f"The memory allowed ({memory_limit or 'the default'}) is not enough for this file: {first}.",
                remedy=f"Raise memory_limit, or free space for spilling in {tempfile.gettempdir()}.",
            ) from None
        finally:
            connection.close()
            pa.default_memory_pool().release_unused()
