"""Checksums of tables see values and nothing else."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.checksums import checksums

COLUMNS = {
    "int": pa.array([1, 2, 3], pa.int32()),
    "nullable": pa.array([1.5, None, 3.0]),
    "nan": pa.array([1.5, float("nan"), -0.0]),
    "text": pa.array(["", "é", "long text"]),
    "bool": pa.array([True, False, True]),
    "list": pa.array([[1, 2], [], [3]], pa.list_(pa.int32())),
    "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2),
}
OTHER = {
    "int": pa.array([1, 2, 4], pa.int32()),
    "nullable": pa.array([None, 1.5, 3.0]),
    "nan": pa.array([1.5, float("nan"), 0.0]),
    "text": pa.array(["é", "", "long text"]),
    "bool": pa.array([True, True, True]),
    "list": pa.array([[1], [2], [3]], pa.list_(pa.int32())),
    "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(1, 7, dtype=np.float32)), 2),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_another_value_gives_another_checksum(name: str) -> None:
    assert checksums(pa.table([COLUMNS[name]], [name])) != checksums(pa.table([OTHER[name]], [name]))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_slice_has_the_checksum_of_its_values(name: str) -> None:
    whole = pa.table([pa.concat_arrays([OTHER[name], COLUMNS[name], OTHER[name]])], [name])
    assert checksums(whole.slice(3, 3)) == checksums(pa.table([COLUMNS[name]], [name]))


def test_what_stands_under_a_null_does_not_count() -> None:
    valid = pa.py_buffer(bytes([0b101]))
    one, other = (pa.Array.from_buffers(pa.int32(), 3, [valid, pa.array([1, x, 3], pa.int32()).buffers()[1]])
                  for x in (7, 8))  # fmt: skip
    assert one.equals(other)
    assert checksums(pa.table([one], ["x"])) == checksums(pa.table([other], ["x"]))


@given(st.lists(st.lists(st.text()), min_size=1), st.data())
def test_how_a_column_is_cut_does_not_count(lists: list[list[str]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(lists)))
    kind = pa.list_(pa.string())
    chunked = pa.chunked_array([pa.array(lists[:cut], kind), pa.array(lists[cut:], kind)])
    assert checksums(pa.table([chunked], ["x"])) == checksums(pa.table([pa.array(lists, kind)], ["x"]))
