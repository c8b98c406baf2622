"""CIFAR images for training and evaluation: from a folder, a Parquet file or the Hub."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from builder.cohort.registry import N_CLASSES
from builder.errors import NetworkError, UsageError

HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
_LABELS = ("label", "fine_label")
_IMAGES = ("img", "image")
_MAGIC = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png"}


@dataclass(frozen=True)
class Images:
    """One split. `pixels`: uint8 (n, 3, 32, 32); `labels`: int64 (n,); `encoding`: jpeg, png..."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    encoding: str

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> Images:
        return Images(self.pixels[:n], self.labels[:n], self.encoding)


def load_images(data: str | None, dataset: str, split: str) -> Images:
    """Read one split of a CIFAR data set.

    Args:
        data: a folder with train and test Parquet files, as `datasets` lays them out (an image
            column of encoded bytes, an integer label), or with CIFAR's own binary batches; the
            training Parquet file itself; or `hub`, the copy on the Hugging Face Hub.
        dataset: cifar10 or cifar100.
        split: train or test.

    Raises:
        UsageError: nothing there, or not that data set.
        NetworkError: the Hub cannot be reached.
    """
    check_trainable(dataset)
    if data is None:
        raise UsageError(f"training needs the {dataset} images.", hint=_how_to_get(dataset))
    read = _from_hub if data == "hub" else _from_path
    images = read(data, dataset, split)
    if not len(images) or images.labels.min() < 0 or images.labels.max() >= N_CLASSES[dataset]:
        raise UsageError(
            f"{data} ({split}): expected labels 0 to {N_CLASSES[dataset] - 1} of {dataset}."
        )
    return images


def check_trainable(dataset: str) -> None:
    """Raises UsageError unless training can read the data set's images."""
    if dataset not in HUB:
        raise UsageError(
            f"training reads {' and '.join(HUB)} only, not {dataset}.",
            hint="the standard counterparts on ImageNet are timm's own checkpoints.",
        )


def _how_to_get(dataset: str) -> str:
    return (
        f"`--data hub` downloads {HUB[dataset]} (pip install 'robust-filter-lens[hub]'); or "
        "`--data FOLDER` with train*.parquet and test*.parquet, or with the binary version of "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _from_path(data: str, dataset: str, split: str) -> Images:
    path = Path(data)
    if path.is_file():
        name = path.name if split == "train" else path.name.replace("train", "test")
        if split == "test" and name == path.name:
            raise UsageError(
                f"{path}: no test images; expected a file named train*.parquet beside "
                "test*.parquet.",
                hint="give the folder that holds both.",
            )
        files = [path.with_name(name)] if path.with_name(name).is_file() else []
    else:
        files = sorted(path.rglob(f"{split}*.parquet"))
        batches = _binary_batches(path, dataset, split)
        if batches and not files:
            return _from_binary(batches, dataset)
    if not files:
        raise UsageError(f"no {split} images of {dataset} at {path}.", hint=_how_to_get(dataset))
    return _decode(_rows(files), str(path))


def _rows(files: list[Path]) -> Iterable[tuple[bytes, int]]:
    for file in files:
        try:
            names = pq.read_schema(file).names
            image = next((c for c in _IMAGES if c in names), None)
            label = next((c for c in _LABELS if c in names), None)
            if image is None or label is None:
                raise UsageError(
                    f"{file}: expected an image column ({' or '.join(_IMAGES)}) and a label "
                    f"({' or '.join(_LABELS)}), found {', '.join(names)}."
                )
            table = pq.read_table(file, columns=[image, label])
        except (OSError, pa.ArrowInvalid) as e:
            raise UsageError(f"cannot read {file}: {e}.") from None
        for cell, y in zip(table[image].to_pylist(), table[label].to_pylist(), strict=True):
            yield cell["bytes"], y


def _decode(rows: Iterable[tuple[bytes, int]], where: str) -> Images:
    from PIL import Image, UnidentifiedImageError

    pixels, encodings = [], set()
    labels: list[int] = []
    for raw, label in rows:
        try:
            with Image.open(io.BytesIO(raw)) as image:
                array = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError):
            raise UsageError(f"{where}: image {len(labels)} cannot be decoded.") from None
        if array.shape != (32, 32, 3):
            raise UsageError(
                f"{where}: image {len(labels)} has shape {array.shape}, expected 32x32."
            )
        pixels.append(array.transpose(2, 0, 1))
        labels.append(label)
        encodings.add(next((v for k, v in _MAGIC.items() if raw.startswith(k)), "other"))
    if not labels:
        raise UsageError(f"{where}: no images.")
    return Images(np.stack(pixels), np.array(labels, np.int64), "+".join(sorted(encodings)))


def _binary_batches(folder: Path, dataset: str, split: str) -> list[Path]:
    """Files of CIFAR's binary version (no pickles: they would run code)."""
    pattern = {
        ("cifar10", "train"): "data_batch_*.bin",
        ("cifar10", "test"): "test_batch.bin",
        ("cifar100", "train"): "train.bin",
        ("cifar100", "test"): "test.bin",
    }[dataset, split]
    return sorted(folder.rglob(pattern))


def _from_binary(files: list[Path], dataset: str) -> Images:
    n_labels = 1 if dataset == "cifar10" else 2  # CIFAR-100: coarse, then fine
    size = n_labels + 3 * 32 * 32
    for file in files:
        if file.stat().st_size % size:
            raise UsageError(f"{file}: expected records of {size} bytes; the file is truncated.")
    raw = np.concatenate([np.fromfile(f, np.uint8) for f in files]).reshape(-1, size)
    pixels = np.ascontiguousarray(raw[:, n_labels:]).reshape(-1, 3, 32, 32)
    return Images(pixels, raw[:, n_labels - 1].astype(np.int64), "raw")


def _from_hub(data: str, dataset: str, split: str) -> Images:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "`--data hub` needs the package datasets.",
            hint="pip install 'robust-filter-lens[hub]'",
        ) from None
    try:
        table: Any = datasets.load_dataset(HUB[dataset], split=split)
    except (OSError, datasets.exceptions.DatasetsError) as e:  # requests' errors are OSErrors
        raise NetworkError(
            f"cannot load {HUB[dataset]} from the Hub: {e}.", hint=_how_to_get(dataset)
        ) from None
    image = next(c for c in _IMAGES if c in table.column_names)
    label = next(c for c in _LABELS if c in table.column_names)
    table = table.cast_column(image, datasets.Image(decode=False))
    return _decode(((row[image]["bytes"], row[label]) for row in table), HUB[dataset])
