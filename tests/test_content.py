"""The content hash: blind to order, layout and encoding, not to any value."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.release.content import add, hash_rows, text

TABLE = pa.table(
    {
        "name": pa.array(["a", "b", None, "b"]),
        "x": pa.array([1.5, -0.0, None, 3.0], pa.float32()),
        "v": pa.array([[1.0, 2.0], None, [3.0, 4.0], [1.0, 2.0]], pa.list_(pa.float64(), 2)),
        "flag": pa.array([True, None, False, True]),
        "n": pa.array([-1, 0, 1, 2], pa.int16()),
    }
)


def test_order_and_chunks_do_not_matter():
    expected = hash_rows(TABLE)
    assert hash_rows(TABLE.take([3, 1, 0, 2])) == expected
    assert hash_rows(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])) == expected
    assert add(hash_rows(TABLE.slice(0, 3)), hash_rows(TABLE.slice(3))) == expected
    assert len(text(expected)) == 32


def test_encodings_and_integer_widths_do_not_matter():
    encoded = TABLE.set_column(0, "name", TABLE["name"].dictionary_encode())
    wider = encoded.set_column(4, "n", TABLE["n"].cast(pa.int64()))
    assert hash_rows(wider) == hash_rows(TABLE)
    assert hash_rows(TABLE.select(["v", "n", "flag", "x", "name"])) == hash_rows(TABLE)


@pytest.mark.parametrize("column", TABLE.column_names)
def test_every_column_counts_unless_skipped(column: str):
    values = TABLE[column].to_pylist()
    swapped = pa.array([values[1], values[0], *values[2:]], TABLE[column].type)
    changed = TABLE.set_column(TABLE.column_names.index(column), column, swapped)
    assert hash_rows(changed) != hash_rows(TABLE)
    assert hash_rows(changed, (column,)) == hash_rows(TABLE, (column,))
    assert hash_rows(TABLE.rename_columns({column: "other"})) != hash_rows(TABLE)


def test_repeated_rows_do_not_cancel():
    assert hash_rows(TABLE) != hash_rows(pa.concat_tables([TABLE, TABLE, TABLE]))


def test_zero_and_minus_zero_null_and_zero_differ():
    plus, minus = (pa.table({"x": pa.array([v], pa.float32())}) for v in (0.0, -0.0))
    null = pa.table({"x": pa.array([None], pa.float32())})
    assert len({hash_rows(t) for t in (plus, minus, null)}) == 3


@given(st.lists(st.floats(width=32), min_size=1, max_size=30), st.data())
def test_a_flipped_bit_changes_the_hash(values: list[float], data: st.DataObject):
    array = np.array(values, np.float32)
    flipped = array.copy().view(np.uint32)
    flipped[data.draw(st.integers(0, len(values) - 1))] ^= 1 << data.draw(st.integers(0, 31))
    before, after = (pa.table({"x": pa.array(a)}) for a in (array, flipped.view(np.float32)))
    assert hash_rows(before) != hash_rows(after)
