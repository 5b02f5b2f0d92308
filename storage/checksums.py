"""Checksums of the values of Arrow columns, whatever they look like in memory."""

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def checksums(table: pa.Table) -> list[int]:
    """A CRC-32 of the values of each column, in order; bit by bit, so that a NaN equals itself.

    How the values are cut into chunks, and what stands under a null, does not count.
    """
    return [_checksum(table.column(name).combine_chunks(), 0) for name in table.column_names]


def _checksum(values: pa.Array, start: int) -> int:
    if values.null_count:
        start = zlib.crc32(values.is_valid().to_numpy(zero_copy_only=False), start)
        values = values.drop_null()
    kind = values.type
    if pa.types.is_list(kind):
        start = zlib.crc32(pc.list_value_length(values).to_numpy(), start)
        return _checksum(values.flatten(), start)
    if pa.types.is_fixed_size_list(kind):
        return _checksum(values.flatten(), start)
    if pa.types.is_string(kind):
        start = zlib.crc32(pc.binary_length(values).to_numpy(), start)
        return zlib.crc32(_text_of(values), start)
    if pa.types.is_boolean(kind):
        return zlib.crc32(values.to_numpy(zero_copy_only=False), start)
    return zlib.crc32(values.to_numpy(), start)


def _text_of(values: pa.StringArray) -> memoryview:
    """The bytes of all texts, one after the other."""
    _, offsets, data = values.buffers()
    if data is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    return memoryview(data)[ends[0] : ends[-1]] if len(ends) else memoryview(b"")
