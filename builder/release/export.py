"""A release for other tools: layers as safetensors or NumPy, and Croissant metadata."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder import hub, schema
from builder.errors import BuilderError, UsageError
from builder.files import replacing
from builder.release.card import SHAREABLE, configs
from builder.release.reader import Release

_Shapes = dict[str, tuple[int, int, int, int]]
_Load = Callable[[str], npt.NDArray[np.float32]]


def export_weights(
    release: Release,
    model_id: str,
    out: Path,
    *,
    layers: Sequence[str | int] | None = None,
    view: str = "trained",
) -> list[str]:
    """Write 3x3 layers of one model to a .safetensors or .npz file; return their names.

    Every layer is one array (out_channels, in_channels, 3, 3) float32, named by its module path as
    in the model's state dict, `conv1.weight`. A .safetensors file also records where it is from.
    Layers are read and written one at a time: memory holds a layer, never a model.

    Args:
        release: from builder.open_release.
        model_id: the model.
        out: the file to write; its suffix chooses the format.
        layers: module paths or layer_index values; default all.
        view: "trained" or "folded" (times bn_scale).

    Raises:
        UsageError: unknown model, layer, view or suffix.
        BuilderError: the file cannot be written.
    """
    if out.suffix not in _WRITERS:
        raise UsageError(f"cannot export to {out.name}; expected {' or '.join(_WRITERS)}.")
    if model_id not in release.model_ids:
        raise UsageError(
            f"{release.address} has no model {model_id!r}.",
            hint=f"it has {len(release.model_ids)}, e.g. {release.model_ids[0]}.",
        )
    schema.check_view(view)
    shapes = _shapes(release, model_id, layers)
    if not shapes:
        raise UsageError(
            f"{release.address} has no filters of {model_id}.",
            hint="expected a release built from networks.",
        )
    about = {
        "model_id": model_id,
        "weights": view,
        "release": release.address if release.address.startswith("hf://") else "",
        "version": release.manifest["version"],
    }

    def load(name: str) -> npt.NDArray[np.float32]:
        return release.weight(model_id, name.removesuffix(".weight"), view=view)

    try:
        with replacing(out) as file:
            _WRITERS[out.suffix](file, shapes, load, about)
    except OSError as e:
        raise BuilderError(f"cannot write {out}: {e.strerror}.") from None
    return list(shapes)


def _shapes(release: Release, model_id: str, layers: Sequence[str | int] | None) -> _Shapes:
    """{name in the state dict: shape} of the chosen layers, in order of execution."""
    table = release.table(
        "layers",
        columns=["layer_index", "layer", "out_channels", "in_channels"],
        where=[("weights", "=", "trained"), ("model_id", "=", model_id)],
    )
    chosen = release.layer_indices([model_id], layers)[model_id]
    return {
        f"{row['layer']}.weight": (row["out_channels"], row["in_channels"], 3, 3)
        for row in sorted(table.to_pylist(), key=lambda row: int(row["layer_index"]))
        if layers is None or row["layer_index"] in chosen
    }


def _safetensors(file: BinaryIO, shapes: _Shapes, load: _Load, about: dict[str, str]) -> None:
    """The format of safetensors: length of a JSON header, the header, the bytes of each array."""
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for name in shapes:
        file.write(np.ascontiguousarray(load(name), "<f4").data)


def _npz(file: BinaryIO, shapes: _Shapes, load: _Load, about: dict[str, str]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in shapes:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, load(name), allow_pickle=False)


_WRITERS: dict[str, Callable[[BinaryIO, _Shapes, _Load, dict[str, str]], None]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
}

_CROISSANT = "http://mlcommons.org/croissant/"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "dct": "http://purl.org/dc/terms/",
    "cr": _CROISSANT,
    "rai": f"{_CROISSANT}RAI/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        word: f"cr:{word}"
        for word in (
            *("citeAs", "column", "containedIn", "equivalentProperty", "extract", "field"),
            *("fileObject", "fileProperty", "fileSet", "format", "includes", "isLiveDataset"),
            *("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references"),
            *("regex", "repeated", "replace", "samplingRate", "separator", "source"),
            *("subField", "transform"),
        )
    },
}
"""The @context of the Croissant 1.0 specification."""


def croissant(release: Release, published: str | None = None) -> dict[str, Any]:
    """Croissant 1.0 metadata of a release, as JSON-LD: every file, table and column.

    Addresses of files are relative to the release folder, or on the Hub at the release's revision.

    Args:
        release: from builder.open_release.
        published: date of publication, YYYY-MM-DD; a release itself holds no date.
    """
    files = release.manifest["files"]
    models = release.table("models", columns=["dataset", "license"]).to_pylist()
    datasets = sorted({m["dataset"] for m in models})
    free = all(m["license"] in SHAREABLE for m in models)
    base = ""
    if hub.is_address(release.address):
        place = hub.parse(release.address)
        base = (
            f"https://huggingface.co/datasets/{place.repo_id}/resolve/{place.revision or 'main'}/"
        )
    distribution = [_repository(base)] if base else []
    records: list[dict[str, Any]] = []
    for name, pattern in configs(files, datasets).items():
        table = schema.TABLES["filters" if name.startswith("filters") else name]
        source, part = _distribution(name, pattern, files, base)
        distribution.append(part)
        records.append(
            {
                "@type": "cr:RecordSet",
                "@id": name,
                "name": name,
                "description": table.description,
                "key": [{"@id": f"{name}/{column}"} for column in table.key],
                "field": [_field(name, column, source) for column in table.columns],
            }
        )
    address = base.split("/resolve/")[0] or "https://arxiv.org/abs/2204.02481"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": f"{_CROISSANT}1.0",
        "name": "robust-filter-lens",
        "description": "Every 3x3 convolution filter of adversarially robust and standard image "
        "classifiers, with reference metrics.",
        "url": address,
        "version": release.manifest["version"],
        **({"datePublished": published} if published else {}),
        "license": "https://creativecommons.org/licenses/by-sa/4.0/"
        if free
        else f"{address}#sources-and-licences",
        "citeAs": "Gavrikov and Keuper, Adversarial Robustness Through the Lens of Convolutional "
        "Filters, CVPR Workshops 2022, pages 139-147.",
        "distribution": distribution,
        "recordSet": records,
    }


def _distribution(
    name: str, pattern: str, files: dict[str, Any], base: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the fields of a table refer to, its file or files as Croissant describes them)."""
    if pattern in files:
        return {"fileObject": {"@id": f"{name}.parquet"}}, _file(
            name, pattern, files[pattern], base
        )
    # Without containedIn, the folder that holds the metadata is meant.
    inside = {"containedIn": {"@id": "repository"}} if base else {}
    whole = {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        **inside,
        "encodingFormat": "application/x-parquet",
        "includes": pattern,
    }
    return {"fileSet": {"@id": whole["@id"]}}, whole


def _repository(base: str) -> dict[str, Any]:
    """The repository as one object; a commit has no SHA-256, mlcommons/croissant#80."""
    return {
        "@type": "cr:FileObject",
        "@id": "repository",
        "name": "repository",
        "contentUrl": base.replace("/resolve/", "/tree/").rstrip("/"),
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _file(name: str, path: str, facts: dict[str, Any], base: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"{name}.parquet",
        "name": f"{name}.parquet",
        "contentUrl": base + path,
        "contentSize": f"{facts['bytes']} B",
        "encodingFormat": "application/x-parquet",
        "sha256": facts["sha256"],
    }


def _field(name: str, column: schema.Column, source: dict[str, Any]) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{name}/{column.name}",
        "name": f"{name}/{column.name}",
        "description": column.description,
        "dataType": _data_type(column.type),
        "source": {**source, "extract": {"column": column.name}},
    }
    if pa.types.is_fixed_size_list(column.type):
        field["repeated"] = True
    return field


def _data_type(type_: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(type_):
        return _data_type(type_.value_type)
    if pa.types.is_boolean(type_):
        return "sc:Boolean"
    if pa.types.is_integer(type_):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(type_) else "sc:Text"
