"""Tables that are written part by part."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2rec_core.errors import ArtefactDamaged, StoreError
from storage import publish
from storage.artefacts import ArtefactWriter, Store


@pytest.fixture
def writer(store: Store):
    with store.write("s", "k", settings={}, inputs={}, fingerprint="f") as writer:
        yield writer


def users(first: int, n: int) -> pa.Table:
    idx = pa.array(range(first, first + n), pa.int32())
    return pa.table({"user_idx": idx, "user_id": pa.array([f"u{i}" for i in range(n)], pa.string()), "n_train": idx})


def test_parts_make_one_table(writer: ArtefactWriter) -> None:
    with writer.table_by_parts("users") as append:
        append(users(1, 3))
        append(users(4, 0))
        append(users(4, 2))
    artefact = writer.publish({}, 1.0)
    assert artefact.table("users").equals(
        pa.concat_tables([users(1, 3), users(4, 2)]).cast(artefact.table("users").schema)
    )
    assert artefact.files["users"].rows == 5


def test_a_table_and_its_only_part_have_the_same_bytes(store: Store, tables: SimpleNamespace) -> None:
    found = []
    for key in ("a", "b"):
        with store.write("s", key, settings={}, inputs={}, fingerprint="f") as writer:
            if key == "a":
                writer.table("items", tables.items)
            else:
                with writer.table_by_parts("items") as append:
                    append(tables.items)
            found.append(writer.publish({}, 1.0).files["items"].sha256)
    assert found[0] == found[1]


def test_a_row_that_is_out_of_place_is_told_by_its_place_in_the_whole(writer: ArtefactWriter) -> None:
    with writer.table_by_parts("users") as append:
        append(users(1, 3))
        with pytest.raises(StoreError, match="expected 4 in row 3, found 5"):
            append(users(5, 1))


def test_no_part_is_refused(writer: ArtefactWriter) -> None:
    with pytest.raises(StoreError, match="'users' was given no part"), writer.table_by_parts("users"):
        pass


def test_an_error_of_who_gives_the_parts_is_passed_on(writer: ArtefactWriter) -> None:
    def give() -> None:
        with writer.table_by_parts("users") as append:
            append(users(1, 1))
            raise FileNotFoundError("the source")

    with pytest.raises(FileNotFoundError, match="the source"):
        give()


def test_what_the_encoder_changed_is_found(writer: ArtefactWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pq.ParquetWriter.write_table

    def wrong(self: pq.ParquetWriter, table: pa.Table, **options: object) -> None:
        real(self, users(7, table.num_rows).cast(table.schema), **options)

    monkeypatch.setattr(publish.pq.ParquetWriter, "write_table", wrong)
    with pytest.raises(ArtefactDamaged, match="from row 0 on"):
        writer.table("users", users(1, 2))


def test_rows_beyond_those_given_are_found(writer: ArtefactWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pq.ParquetWriter.write_table

    def twice(self: pq.ParquetWriter, table: pa.Table, **options: object) -> None:
        real(self, table, **options)
        real(self, table, **options)

    monkeypatch.setattr(publish.pq.ParquetWriter, "write_table", twice)
    with pytest.raises(ArtefactDamaged, match="does not hold what was written to it"):
        writer.table("users", users(1, 2))
