"""Is this folder the release its manifest says? Two tiers of checks, without torch.

Fast: manifest, digests of every file, schemas, counts, keys and ranges. Full: content hashes,
every metric of layers, models and bases recomputed from the stored filters (recompute.py,
derived.py), every query run, with the audits that recompute histograms (audits.py). Each check is a
small function that yields faults; no fault means the release is good.

What no filter tells is taken at its word: where a layer sits in its network, what the cohort says
of a model, `n_params` (beyond a lower bound), and `first_layer`, which needs networks and images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import schema
from builder.check.audits import wrong_answers
from builder.check.derived import wrong_bases, wrong_histograms, wrong_models
from builder.check.fault import Fault
from builder.check.parallel import Step, in_parallel
from builder.check.recompute import wrong_metrics
from builder.check.tables import check_schemas, check_tables, stored_tables
from builder.files import file_sha256
from builder.progress import Report, silent
from builder.release import content
from builder.release.manifest import Manifest, read_manifest
from builder.release.parquet import open_parquet
from builder.release.texts import is_whole
from builder.workers import HERE, Workers


def verify(
    root: Path, full: bool = False, report: Report = silent, workers: Workers = HERE
) -> list[Fault]:
    """Check a release folder.

    Args:
        root: the release.
        full: recompute content hashes and metrics and run the queries, too.
        report: called as checks proceed, as ("verify", check, done, total).
        workers: who reads the files; those of a cluster see `root` under the same path.

    Raises:
        BuilderError: no release, or a damaged manifest.
    """
    manifest = read_manifest(root)
    root = root.absolute()  # pyarrow takes a relative `a:b/c` for a URI
    faults = list(check_files(root, manifest, report, workers))
    if faults:
        return faults  # what is inside damaged files says nothing
    faults += check_schemas(root, manifest)
    if not faults:
        faults += check_tables(root, manifest)
    if full and not faults:
        faults += check_content(root, manifest, report, workers)
        wrong_layers = list(wrong_metrics(root, report, workers))
        faults += (Fault("metrics", *wrong) for wrong in wrong_layers)
        if not wrong_layers:  # what follows from wrong layers says nothing
            faults += (Fault("metrics", *wrong) for wrong in wrong_models(root, manifest))
            faults += (Fault("pca", *wrong) for wrong in wrong_bases(root))
            faults += (Fault("histograms", *wrong) for wrong in wrong_histograms(root))
        faults += (Fault("queries", *wrong) for wrong in wrong_answers(root, report))
    return faults


def check_files(
    root: Path, manifest: Manifest, report: Report, workers: Workers
) -> Iterator[Fault]:
    """Every file of the manifest is there, whole and unchanged, and there is no other.

    Links count as what they lead to: a snapshot in the Hub's cache is made of them. What the Hub
    adds to a repository, and huggingface_hub to a download, may be there.
    """
    listed = manifest["files"]
    for path in sorted(_present(root, listed) - listed.keys() - {schema.MANIFEST, schema.CARD}):
        if path != ".gitattributes" and not path.startswith(".cache/huggingface/"):
            yield Fault("files", path, "is not in the manifest")
    if schema.CARD not in listed:
        yield from _check_card(root)

    def one(path: str, step: Step) -> Iterator[Fault]:
        facts = listed[path]
        if not (root / path).is_file():
            yield _missing(root, path)
        elif (size := (root / path).stat().st_size) != facts["bytes"]:
            yield Fault("files", path, f"has {size} bytes, the manifest says {facts['bytes']}")
        elif file_sha256(root / path) != facts["sha256"]:
            yield Fault("files", path, "has changed: its SHA-256 is not the manifest's")
        step(1)

    yield from in_parallel(one, sorted(listed), report, "files", len(listed), workers)


def _present(root: Path, listed: Iterable[str]) -> set[str]:
    """Every file below a folder, through the links that lead to a folder of the release.

    Any other link to a folder stands for itself: what is behind it is none of ours, and endless
    where it leads back up.
    """
    folders = {parent.as_posix() for path in listed for parent in PurePosixPath(path).parents}
    found: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        links = [
            n for n in names if (Path(folder) / n).is_symlink() and str(here / n) not in folders
        ]
        names[:] = [n for n in names if n not in links]
        found |= {str(here / name) for name in (*files, *links)}
    return found


def _missing(root: Path, path: str) -> Fault:
    link = (root / path).is_symlink()
    return Fault("files", path, "is a link that leads to no file" if link else "is missing")


def _check_card(root: Path) -> Iterator[Fault]:
    """The card, which the manifest does not list, is as it was sealed."""
    if not (root / schema.CARD).is_file():
        yield _missing(root, schema.CARD)
    elif not is_whole((root / schema.CARD).read_bytes()):
        yield Fault("files", schema.CARD, "has changed: its last line is not its digest")


def check_content(
    root: Path, manifest: Manifest, report: Report, workers: Workers
) -> Iterator[Fault]:
    """Content hashes are the manifest's; filters are sorted; the sample's rows are among them."""
    paths = dict(stored_tables(root, manifest))
    sampled = _samples(root, manifest)

    def one(path: str, step: Step) -> Iterator[Fault]:
        filters = schema.filters_key(path) is not None
        sample = sampled.get(Path(path).stem) if filters else None
        total, found, previous = 0, 0, -math.inf
        with open_parquet(root / path) as file:
            for batch in file.iter_batches(1 << 17, use_threads=False):
                skip = content.FILTER_IDENTITY if filters else ()
                total = content.add(total, content.hash_rows(batch, skip))
                if filters:
                    key = _filter_key(batch)
                    if key[0] <= previous or (key[1:] <= key[:-1]).any():
                        yield Fault("order", path, "is not sorted by its key, or repeats one")
                        break
                    previous = key[-1]
                    if sample is not None:
                        found = content.add(found, _hash_among(batch, key, _filter_key(sample)))
                step(batch.num_rows)
        if content.text(total) != manifest["files"][path]["content_hash"]:
            yield Fault("content", path, "content hash is not the manifest's")
        elif sample is not None and found != content.hash_rows(sample):
            yield Fault("filters", schema.SAMPLE, f"has rows that are not in {path}")

    rows = sum(manifest["files"][path]["rows"] or 0 for path in paths)
    yield from in_parallel(one, paths, report, "content", rows, workers)
    filters = {Path(path).stem for path in paths if schema.filters_key(path)}
    for model_id in sampled.keys() - filters:
        yield Fault("filters", schema.SAMPLE, f"has rows of {model_id}, which has no filters")


def _samples(root: Path, manifest: Manifest) -> dict[str, pa.RecordBatch]:
    """The rows of filters_sample by model."""
    if schema.SAMPLE not in manifest["files"]:
        return {}
    rows = pq.read_table(root / schema.SAMPLE)
    found = {}
    for model_id in pc.unique(rows["model_id"]).to_pylist():
        of_model = rows.filter(pc.equal(rows["model_id"], model_id)).combine_chunks()
        found[model_id] = of_model.to_batches()[0]
    return found


def _hash_among(batch: pa.RecordBatch, key: Any, wanted: Any) -> int:
    """Content hash of the rows of a batch that have one of the keys wanted."""
    at = np.searchsorted(key, wanted).clip(max=len(key) - 1)
    return content.hash_rows(batch.take(pa.array(at[key[at] == wanted])))


def _filter_key(batch: pa.RecordBatch) -> Any:
    layer, out, in_ = (
        batch[name].to_numpy().astype("int64")
        for name in ("layer_index", "out_channel", "in_channel")
    )
    return (layer << 32) | (out << 16) | in_
