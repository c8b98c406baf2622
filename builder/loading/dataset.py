"""Filters, layers or models of a release as an iterable data set of torch.

A pass goes through pieces: ranges of at most a row group of one model's filters, single layers, or
single models. Shuffled, the pieces come in an order drawn from the seed and the epoch, and so do
the filters inside each. Every row has its position in that order. Ranks and workers take equal
ranges of positions, so that none repeats or loses a row; what is done is a set of positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from builder import schema
from builder.errors import UsageError
from builder.loading import positions
from builder.loading.pieces import UNITS, Piece, choose
from builder.loading.positions import Intervals
from builder.release.manifest import filter_files
from builder.release.parquet import open_parquet
from builder.release.reader import Release, open_release, to_array

_KEYS = ("layer_index", "out_channel", "in_channel")


class ReleaseDataset(IterableDataset[dict[str, Any]]):
    """The filters, layers or models of a release, for `torch.utils.data.DataLoader`.

    Each row is a dictionary: its key, `robust`, its `position` in the pass, and

    - unit "filter": `filter` (3, 3) float32; `layer_index`, `out_channel`, `in_channel`,
      `depth_bin`. With `batch_rows`, filters of one model: (n, 3, 3), and (n,) int64 the others.
    - unit "layer": `weight` (out_channels, in_channels, 3, 3) float32; `layer_index`, `layer`,
      `depth_bin`. Layers differ in shape: DataLoader(batch_size=None).
    - unit "model": `weights`, {layer: weight}. DataLoader(batch_size=None).

    Ranks and workers share the rows equally, to within one row. `state_dict` says what is done, and
    `load_state_dict` goes on from there, exactly, with any number of workers and, given the states
    of all ranks, of ranks. Workers read ahead: their rows are done when the training loop says so,
    with `used`:

        for epoch in range(data.epoch, epochs):
            data.set_epoch(epoch)
            for batch in DataLoader(data, batch_size=256, num_workers=2):
                ...
                data.used(batch)

    Without workers `used` may be left out: what was handed out is done.

    Args:
        release: a folder, an address on the Hub, or an open release.
        unit: one of `UNITS`.
        view: "trained" or "folded", as in `Release.filters`.
        where: which rows of `models`, as in `Release.table`, e.g. `[("split", "=", "train")]`.
        layers: module paths or values of layer_index; default all.
        batch_rows: upper bound of filters in a batch; None: one at a time.
        shuffle: pieces, and filters inside each, in an order of `seed` and the epoch.
        seed: not negative.
        rank, world_size: this process among those that train together; default: those of
            torch.distributed where it is initialised by now, else the only one.

    Raises:
        UsageError: no such release, unit, view, column or layer; a release without filters.
    """

    def __init__(
        self,
        release: Release | str | Path,
        unit: str = "filter",
        *,
        view: str = "trained",
        where: Any = None,
        layers: Sequence[str | int] | None = None,
        batch_rows: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        schema.check_view(view)
        if unit not in UNITS:
            raise UsageError(f"unknown unit {unit!r}; expected {', '.join(UNITS)}.")
        if batch_rows is not None and (batch_rows < 1 or unit != "filter"):
            raise UsageError(f"batch_rows={batch_rows}: batches are of one filter or more.")
        self._rank, self._world = _place(rank, world_size)
        self._release = release if isinstance(release, Release) else open_release(release)
        self._unit, self._view, self._batch = unit, view, batch_rows
        self._shuffle, self._seed = shuffle, seed
        self._files = filter_files(self._release.manifest)
        self._robust, self._pieces = choose(self._release, unit, view, where, layers)
        self.rows = sum(p.rows for p in self._pieces)
        # Shared, so that workers that stay alive between passes hear of a new epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._forget()

    def _forget(self, before: Intervals = (), done: Intervals = ()) -> None:
        self._next = before, done  # where the next pass starts
        self._before = before  # done when the ranks shared the others
        self._handed = self._base = done
        self._told: Intervals | None = None

    @property
    def epoch(self) -> int:
        """The pass that is under way, or the next one: 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Start another pass, of another order where it is shuffled; the same epoch goes on."""
        if epoch != self.epoch:
            self._epoch.fill_(epoch)
            self._forget()

    def used(self, batch: Mapping[str, Any]) -> None:
        """Say that the rows of a batch, as it came from the DataLoader, are done.

        Raises:
            UsageError: one of them was done before in this epoch.
        """
        at = np.asarray(batch["position"])
        known = self._base if self._told is None else self._told
        self._told = positions.union(known, positions.of(at))
        if positions.size(self._told) != positions.size(known) + at.size:
            raise UsageError(
                f"a row was used twice in epoch {self.epoch}.", hint="set_epoch starts a new pass."
            )

    def state_dict(self) -> dict[str, Any]:
        """What is done of this rank's rows, as plain numbers and texts: JSON can hold it."""
        done = self._handed if self._told is None else self._told
        return {
            **self._identity(),
            "epoch": self.epoch,
            "rank": self._rank,
            "world_size": self._world,
            "before": [list(i) for i in self._before],
            "done": [list(i) for i in done],
        }

    def load_state_dict(self, state: Mapping[str, Any], *others: Mapping[str, Any]) -> None:
        """Go on from this rank's own state, or from those of all ranks, which may be others now.

        Raises:
            UsageError: a state of other rows, or of another order; states of several epochs, or of
                some of the ranks.
        """
        states = (state, *others)
        common = {name: state[name] for name in ("epoch", "world_size", "before")}
        for found in states:
            for name, mine in {**self._identity(), **common}.items():
                if found.get(name) != mine:
                    raise UsageError(
                        f"the state has {name} {found.get(name)!r}, this data set {mine!r}.",
                        hint="a state belongs to the release, selection, seed and epoch it is of.",
                    )
        ranks, world = sorted(found["rank"] for found in states), state["world_size"]
        done = positions.union(*(map(tuple, found["done"]) for found in states))
        if ranks == list(range(world)):
            before = done  # so that what is left is shared anew
        elif (ranks, world) == ([self._rank], self._world):
            before = positions.union(map(tuple, state["before"]))
        else:
            raise UsageError(
                f"the states are of the ranks {', '.join(map(str, ranks))} of {world}; expected "
                f"those of all, or that of rank {self._rank} of {self._world} alone.",
                hint="load the states of all ranks, on each of them.",
            )
        self._epoch.fill_(state["epoch"])
        self._forget(before, done)

    def _identity(self) -> dict[str, Any]:
        """What fixes the order of the rows but for the epoch."""
        chosen = [(p.model_id, p.start, p.stop) for p in self._pieces]
        return {
            "release": self._release.manifest.get("sha256"),
            "unit": self._unit,
            "rows": self.rows,
            "selection": hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16],
            "shuffle": self._shuffle,
            "seed": self._seed,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        (self._before, self._handed), self._next = self._next, ((), ())
        whole = positions.difference(((0, self.rows),), self._before)
        left = positions.share(whole, self._rank, self._world)
        left = positions.difference(left, self._handed)
        if (worker := get_worker_info()) is not None:
            left = positions.share(left, worker.id, worker.num_workers)
        rng = np.random.default_rng([self._seed, self.epoch]) if self._shuffle else None
        count = len(self._pieces)
        order = np.arange(count) if rng is None else rng.permutation(count)
        ends = np.cumsum([self._pieces[i].rows for i in order], dtype=np.int64)
        for low, high in left:
            first = int(np.searchsorted(ends, low, side="right"))
            for at in range(first, count):
                piece = self._pieces[order[at]]
                begin = int(ends[at]) - piece.rows
                if begin >= high:
                    break
                span = (max(low, begin) - begin, min(high, begin + piece.rows) - begin)
                for offset, n, row in self._read(piece, int(order[at]), *span):
                    row["position"] = begin + offset
                    if self._batch is not None:
                        row["position"] = torch.arange(begin + offset, begin + offset + n)
                    done = (begin + offset, begin + offset + n)
                    self._handed = positions.union(self._handed, [done])
                    yield row

    def _read(
        self, piece: Piece, number: int, start: int, stop: int
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(place in the piece, rows, what is handed out) of the rows start to stop of a piece."""
        if start == stop:
            return
        about = {"model_id": piece.model_id, "robust": self._robust[piece.model_id]}
        if self._unit == "filter":
            yield from self._filters(piece, number, start, stop, about)
            return
        filters = to_array(self._table(piece, []), self._view)
        weights = {
            one.layer: torch.from_numpy(
                filters[one.start - piece.start : one.stop - piece.start].reshape(
                    one.out_channels, -1, 3, 3
                )
            )
            for one in piece.layers
        }
        if self._unit == "model":
            yield 0, 1, {**about, "weights": weights}
            return
        (one,) = piece.layers
        facts = {"layer_index": one.layer_index, "layer": one.layer, "depth_bin": one.depth_bin}
        yield 0, 1, {**about, **facts, "weight": weights[one.layer]}

    def _filters(
        self, piece: Piece, number: int, start: int, stop: int, about: dict[str, Any]
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        table = self._table(piece, list(_KEYS))
        columns: dict[str, NDArray[Any]] = {
            k: table.column(k).to_numpy().astype(np.int64) for k in _KEYS
        }
        bins = np.zeros(1 + max(one.layer_index for one in piece.layers), np.int64)
        for one in piece.layers:
            bins[one.layer_index] = one.depth_bin
        columns["depth_bin"] = bins[columns["layer_index"]]
        filters = to_array(table, self._view)
        if self._shuffle:
            shuffled = np.random.default_rng([self._seed, self.epoch, number])
            order = shuffled.permutation(piece.rows)
            filters = filters[order]
            columns = {k: v[order] for k, v in columns.items()}
        # Copies: a part of a tensor would hold on to all of it, and send it from a worker.
        if self._batch is None:
            for i in range(start, stop):
                numbers = {k: int(v[i]) for k, v in columns.items()}
                yield i, 1, {**about, **numbers, "filter": torch.from_numpy(filters[i].copy())}
            return
        columns["filter"] = filters
        for i in range(start, stop, self._batch):
            end = min(stop, i + self._batch)
            tensors = {k: torch.from_numpy(v[i:end].copy()) for k, v in columns.items()}
            yield i, end - i, {**about, **tensors}

    def _table(self, piece: Piece, keys: list[str]) -> pa.Table:
        """The rows of a piece."""
        columns = [*keys, *schema.FILTER_COLUMNS, "bn_scale"]
        if piece.start == piece.stop:
            return schema.FILTERS.arrow.empty_table().select(columns)
        with open_parquet(self._release.fetch(self._files[piece.model_id])) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            ends = np.cumsum(sizes, dtype=np.int64)
            first = int(np.searchsorted(ends, piece.start, side="right"))
            last = int(np.searchsorted(ends, piece.stop, side="left"))
            table = file.read_row_groups(list(range(first, last + 1)), columns=columns)
        begin = piece.start - (int(ends[first]) - sizes[first])
        return table.slice(begin, piece.stop - piece.start).combine_chunks()


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process among those that train together."""
    if (rank is None) != (world_size is None):
        raise UsageError("rank and world_size belong together; expected both or none.")
    if rank is None or world_size is None:
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} of {world_size}; expected 0 to {world_size - 1}.")
    return rank, world_size
