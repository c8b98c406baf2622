"""Parquet files as measured: encodings, pages, row groups, order; nothing half-written."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from builder import schema
from builder.release import sample, write
from builder.release.manifest import FileFacts
from builder.release.write import filter_writer, table_from_rows, write_table


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    columns = np.random.default_rng(seed).normal(size=(9, n)).astype(np.float32)
    return columns, np.abs(columns).max(axis=0)


def filters(path: Path, *layers: tuple[int, int]) -> FileFacts:
    """Write layers of (out_channels, in_channels)."""
    with filter_writer(path, "cifar10", "cifar10-robust-a", "checkpoints") as writer:
        for index, (out, inside) in enumerate(layers):
            columns, linf = rows(out * inside, index)
            scale = np.arange(out, dtype=np.float32) if index else None
            writer.append(index, inside, columns, linf, scale)
    assert writer.written is not None
    return writer.written


def test_rows_come_back_in_key_order_with_their_values(tmp_path: Path):
    written = filters(tmp_path / "f.parquet", (4, 3), (5, 2))
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.schema.equals(schema.FILTERS.arrow)
    assert written["rows"] == table.num_rows == 22
    assert table["layer_index"].to_pylist() == [0] * 12 + [1] * 10
    assert table["out_channel"].to_pylist()[:4] == [0, 0, 0, 1]
    assert table["in_channel"].to_pylist()[12:16] == [0, 1, 0, 1]
    assert table["bn_scale"].to_pylist() == [1.0] * 12 + [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    columns, linf = rows(10, 1)
    np.testing.assert_array_equal(table["w21"].to_numpy()[12:], columns[7])
    np.testing.assert_array_equal(table["linf"].to_numpy()[12:], linf)


def test_row_groups_pages_and_encodings_are_the_measured_ones(tmp_path: Path):
    filters(tmp_path / "f.parquet", (1024, 256), (1024, 300))
    file = pq.ParquetFile(tmp_path / "f.parquet").metadata
    sizes = [file.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [524_288, 1024 * 556 - 524_288]
    group = file.row_group(0)
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in (*schema.FILTER_COLUMNS, "linf"):
        assert "BYTE_STREAM_SPLIT" in by_name[name].encodings
        assert by_name[name].compression == "ZSTD"
    assert "DELTA_BINARY_PACKED" in by_name["in_channel"].encodings
    assert by_name["w00"].has_offset_index and by_name["w00"].has_column_index
    assert group.total_byte_size < 100 << 20  # what the Hub's viewer reads in one request
    assert [s.column_index for s in group.sorting_columns] == [2, 3, 4]


def test_the_same_rows_give_the_same_bytes_and_a_change_another_hash(tmp_path: Path):
    first = filters(tmp_path / "a.parquet", (4, 3), (5, 2))
    assert filters(tmp_path / "b.parquet", (4, 3), (5, 2)) == first
    assert filters(tmp_path / "c.parquet", (4, 3), (2, 5))["content_hash"] != first["content_hash"]
    assert first["bytes"] == (tmp_path / "a.parquet").stat().st_size


def test_a_failure_leaves_no_file(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="measuring failed"),
        filter_writer(tmp_path / "f.parquet", "cifar10", "m", "checkpoints") as writer,
    ):
        columns, linf = rows(6)
        writer.append(0, 3, columns, linf, None)
        raise RuntimeError("measuring failed")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_encoder_reaches_the_caller(tmp_path: Path, monkeypatch):
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write._HashingFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        filters(tmp_path / "f.parquet", *[(1024, 600)] * 3)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_footer_does_not_hang(tmp_path: Path, monkeypatch):
    write_all = write._HashingFile.write

    def full(sink: write._HashingFile, data: bytes) -> int:
        if sink.bytes and bytes(data).endswith(b"PAR1"):
            raise OSError(28, "No space left on device")
        return write_all(sink, data)

    monkeypatch.setattr(write._HashingFile, "write", full)
    raised: list[str] = []

    def work() -> None:
        with pytest.raises(OSError, match="No space left") as e:
            filters(tmp_path / "f.parquet", (4, 3))
        raised.append(str(e.value))

    worker = threading.Thread(target=work, daemon=True)  # its encoder is a daemon, too
    worker.start()
    worker.join(10)
    assert len(raised) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_two_row_groups_wait_for_a_slow_encoder(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(write, "ROWS_PER_GROUP", 8)
    taken, go_on = threading.Semaphore(0), threading.Event()
    encode = write.FilterWriter._encode

    def slow(writer: write.FilterWriter, columns: list) -> int:
        taken.release()
        assert go_on.wait(10)
        return encode(writer, columns)

    monkeypatch.setattr(write.FilterWriter, "_encode", slow)
    written: list[FileFacts] = []
    worker = threading.Thread(target=lambda: written.append(filters(tmp_path / "f", (4, 10))))
    worker.start()
    assert taken.acquire(timeout=10)
    worker.join(0.2)
    assert worker.is_alive()  # the third group waits until the first is encoded
    go_on.set()
    worker.join(10)
    assert written[0]["rows"] == pq.read_metadata(tmp_path / "f").num_rows == 40
    assert pq.read_metadata(tmp_path / "f").num_row_groups == 5


def test_a_sample_is_taken_while_writing_and_kept_exactly(tmp_path: Path):
    columns, linf = rows(4 * 300)
    columns[3, 75] = np.nan  # in the sample
    with filter_writer(tmp_path / "f", "cifar10", "m", "checkpoints") as writer:
        writer.append(0, 300, columns, linf, np.arange(4, dtype=np.float32))
        writer.append(1, 2, *rows(6, 1), None)
    kept = sample.table([sample.as_text(writer.sample())])
    at = [75 + 150 * i for i in range(8)] + [1200 + i for i in range(6)]
    expected = pq.read_table(tmp_path / "f").take(at)
    for name in expected.column_names:
        np.testing.assert_array_equal(kept[name].to_numpy(), expected[name].to_numpy())
    assert kept.schema.equals(schema.FILTERS.arrow)
    assert sample.table([]).num_rows == 0


def test_small_tables_keep_their_types_and_nulls(tmp_path: Path):
    pair = {"robust_model_id": "r", "standard_model_id": "s", "dataset": "cifar10",
            "architecture": "A"}  # fmt: skip
    path = tmp_path / "pairs.parquet"
    written = write_table(path, schema.PAIRS, table_from_rows(schema.PAIRS, [pair]), "seeded:3")
    table = pq.read_table(path)
    assert table.to_pylist() == [pair] and written["rows"] == 1
    assert table.schema.metadata[b"rfl.weights"] == b"seeded:3"
    empty = write_table(path, schema.PAIRS, table_from_rows(schema.PAIRS, []), "checkpoints")
    assert empty["rows"] == 0 and pq.read_table(path).schema.equals(schema.PAIRS.arrow)


def test_the_hubs_check_for_optimized_parquet_finds_its_key(tmp_path: Path):
    # It looks for `use_content_defined_chunking` in the footer (dataset-viewer, parquet.rs).
    write_table(tmp_path / "p", schema.PAIRS, table_from_rows(schema.PAIRS, []), "checkpoints")
    filters(tmp_path / "f", (4, 3))
    found = [b"use_content_defined_chunking" in pq.read_metadata(tmp_path / f).metadata
             for f in ("p", "f")]  # fmt: skip
    assert found == [True, False] and write.TABLE_SETTINGS["use_content_defined_chunking"]
