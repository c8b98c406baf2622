"""Export to safetensors, NumPy and Croissant, read back with the libraries themselves."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny_release
from tiny_release import LAYERS, MODELS, filters, write_tiny_release
from typer.testing import CliRunner

from builder import schema
from builder.cli.main import app
from builder.errors import UsageError
from builder.paper.reference import write_reference
from builder.release.export import croissant, export_weights
from builder.release.reader import Release, open_release

MODEL = MODELS[0].model_id


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def release(root: Path) -> Release:
    return open_release(root)


def load(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    safetensors = pytest.importorskip("safetensors.numpy")
    return dict(safetensors.load_file(path))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("view", schema.WEIGHT_VIEWS)
def test_a_model_comes_back_layer_by_layer(
    release: Release, tmp_path: Path, suffix: str, view: str
) -> None:
    names = export_weights(release, MODEL, tmp_path / f"model{suffix}", view=view)
    assert names == [f"{name}.weight" for name, _, _ in LAYERS]
    loaded = load(tmp_path / f"model{suffix}")
    assert set(loaded) == set(names)
    table = filters(MODELS[0])
    w = np.stack([table.column(c).to_numpy() for c in schema.FILTER_COLUMNS], axis=1)
    if view == "folded":
        w = w * table.column("bn_scale").to_numpy()[:, None]
    index = table.column("layer_index").to_numpy()
    for i, (name, outs, ins) in enumerate(LAYERS):
        expected = w[index == i].reshape(outs, ins, 3, 3)
        np.testing.assert_array_equal(loaded[f"{name}.weight"], expected)
        assert loaded[f"{name}.weight"].dtype == np.float32


def test_a_safetensors_file_says_where_it_is_from(release: Release, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    export_weights(release, MODEL, tmp_path / "a.safetensors", layers=["conv1"], view="folded")
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        about = file.metadata()
        assert list(file.keys()) == ["conv1.weight"]
    assert about["model_id"] == MODEL and about["weights"] == "folded"
    assert about["version"] == "0.1.0" and str(tmp_path) not in str(about)


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        ("nobody", "a.npz", "no model 'nobody'"),
        (MODEL, "a.csv", r"expected \.safetensors or \.npz"),
        (MODEL, "a.safetensors", "layer 'conv9'"),
    ],
)
def test_a_wrong_request_is_one_clear_message_and_writes_nothing(
    release: Release, tmp_path: Path, model: str, name: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        export_weights(release, model, tmp_path / name, layers=["conv9"])
    assert not list(tmp_path.iterdir())


def test_a_release_without_filters_has_none_to_export(tmp_path: Path) -> None:
    write_reference(tmp_path / "reference")
    published = open_release(tmp_path / "reference")
    with pytest.raises(UsageError, match=f"has no filters of {published.model_ids[0]}"):
        export_weights(published, published.model_ids[0], tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["reference"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([MODEL, "--croissant"], "it takes no model"),
        (["--croissant", "--layer", "conv1"], "no layer"),
        ([MODEL], "where to"),
        (["-o", "a.npz"], "which model"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    root: Path, options: list[str], said: str
) -> None:
    done = CliRunner().invoke(app, ["export", str(root), *options])
    assert isinstance(done.exception, UsageError) and said in str(done.exception)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """One model of twelve layers of 2.4 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_release, "LAYERS", tuple((f"conv{i}", 256, 256) for i in range(12)))
        root = write_tiny_release(tmp_path_factory.mktemp("twelve"), models=(MODELS[0],))
    return open_release(root)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_memory_holds_a_layer_and_never_the_model(
    twelve: Release, tmp_path: Path, suffix: str
) -> None:
    layer = 256 * 256 * 9 * 4
    tracemalloc.start()
    try:
        export_weights(twelve, MODEL, tmp_path / f"big{suffix}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / f"big{suffix}").stat().st_size > 12 * layer
    assert peak < 5 * layer


def test_croissant_is_valid_and_its_records_are_the_rows(root: Path, release: Release) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    described = root / "croissant.json"
    described.write_text(json.dumps(croissant(release, "2026-01-01")))
    try:
        dataset = mlcroissant.Dataset(jsonld=described)
        issues = dataset.metadata.ctx.issues
        assert not issues.errors and not issues.warnings, issues.report()
        rows = list(dataset.records("models"))
        assert [r["models/model_id"].decode() for r in rows] == [m.model_id for m in MODELS]
        names = {r.name for r in dataset.metadata.record_sets}
        assert names >= {*schema.SMALL_TABLES, "filters_cifar10", "filters_cifar100"}
        filters_ = list(dataset.records("filters_cifar100"))
        assert len(filters_) == 216 * sum(m.dataset == "cifar100" for m in MODELS)
        expected = {f"filters_cifar100/{c}" for c in schema.FILTERS.names}
        assert set(filters_[0]) == expected
    finally:
        described.unlink()


def test_croissant_goes_to_stdout_or_to_the_file_that_is_named(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "croissant.json"
    shown = CliRunner().invoke(app, ["export", str(root), "--croissant"])
    written = CliRunner().invoke(app, ["export", str(root), "--croissant", "-o", str(file)])
    assert shown.exit_code == written.exit_code == 0 and written.stdout == ""
    assert json.loads(shown.stdout) == json.loads(file.read_text())


def test_croissant_on_the_hub_names_the_tag(release: Release) -> None:
    from dataclasses import replace

    mlcroissant = pytest.importorskip("mlcroissant")
    there = replace(release, address="hf://datasets/lens/filters@v0.1.0")
    described = croissant(there, "2026-01-01")
    dataset = mlcroissant.Dataset(jsonld=described)
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    addresses = [d["contentUrl"] for d in described["distribution"] if "contentUrl" in d]
    assert addresses and all("/lens/filters/" in a and "/v0.1.0" in a for a in addresses)
