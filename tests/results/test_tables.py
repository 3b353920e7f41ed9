"""The forms that are written by hand, each read by the library that it is meant for."""

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from holdfast.errors import ConfigError
from holdfast.models.registry import Output
from holdfast.results import tables
from holdfast.results.embeddings import read_embeddings
from holdfast.results.tables import choose_writer
from holdfast.results.writer import EmbeddingsWriter
from pyarrow import parquet

from tests.results.samples import describe_model

WIDTH = 6
MODEL = describe_model(WIDTH, 3)


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


def write(path: Path, rows: int, residues: bool = False, dtype: str = "float32") -> Path:
    """Proteins of 1, 2, 3, ... residues, with means of layers 0 and 3 and maxima of layer 3."""
    ids, lengths = [f"p{row}_菌" for row in range(rows)], list(range(1, rows + 1))
    with EmbeddingsWriter.create(path, "s", "proteins", job="s-1") as writer:
        writer.append_records(ids, lengths, lengths, ["ok"] * rows)
        writer.append_rows(ids, lengths, [bytes(32)] * rows, range(rows), [0] * rows, [0] * rows)
    with EmbeddingsWriter.reopen(path, {}) as writer:
        for output in (Output(0, "mean"), Output(3, "mean"), Output(3, "max")):
            seed = output.layer + len(output.pooling)
            writer.write_matrix("model", MODEL, output, dtype, "fp32", [vectors(rows, seed)])
        if residues:
            values = [vectors(sum(lengths), 9)]
            writer.write_residues("model", MODEL, Output(3, "residues"), dtype, "fp32", np.array(lengths), values)
    return path


@pytest.mark.parametrize("rows", [0, 5])
def test_npz_has_an_array_a_pooling_and_residues_with_their_offsets(tmp_path: Path, rows: int) -> None:
    output = tmp_path / "out.npz"
    choose_writer(output, ["mean", "residues"])(write(tmp_path / "in.h5", rows, residues=True), output)
    with np.load(output) as file:
        arrays = {name: file[name] for name in file.files}
    assert sorted(arrays) == ["0/mean", "3/max", "3/mean", "3/offsets", "3/residues", "ids", "length"]
    assert arrays["ids"].tolist() == [f"p{row}_菌" for row in range(rows)]
    assert arrays["length"].tolist() == list(range(1, rows + 1))
    for name, seed in (("0/mean", 4), ("3/mean", 7), ("3/max", 6)):
        np.testing.assert_array_equal(arrays[name], vectors(rows, seed))
    assert arrays["3/offsets"].tolist() == [0, 1, 3, 6, 10, 15][: rows + 1]
    np.testing.assert_array_equal(arrays["3/residues"], vectors(rows * (rows + 1) // 2, 9))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_has_a_row_a_sequence_and_a_list_a_pooling(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in blocks of two rows, read by pyarrow and by pandas."""
    blocks = tables.EmbeddingsFile.blocks
    monkeypatch.setattr(tables.EmbeddingsFile, "blocks", lambda file, names: blocks(file, names, block_rows=2))
    output = tmp_path / "out.parquet"
    choose_writer(output, ["mean", "max"])(write(tmp_path / "in.h5", 5, dtype=dtype), output)
    assert parquet.ParquetFile(output).num_row_groups == 3
    table = parquet.read_table(output)
    assert table.column_names == ["id", "length", "0/mean", "3/mean", "3/max"]
    assert (table.schema.metadata[b"sample"], table.schema.metadata[b"job"]) == (b"s", b"s-1")
    found = pandas.read_parquet(output)
    assert found["id"].tolist() == [f"p{row}_菌" for row in range(5)]
    assert found["length"].tolist() == [1, 2, 3, 4, 5]
    for name, seed in (("0/mean", 4), ("3/mean", 7), ("3/max", 6)):
        values = np.stack(found[name].tolist())
        np.testing.assert_array_equal(values, vectors(5, seed).astype(dtype))
        assert values.dtype == dtype


def test_parquet_without_rows_has_its_columns(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    choose_writer(output, ["mean"])(write(tmp_path / "in.h5", 0), output)
    table = parquet.read_table(output)
    assert (table.num_rows, table.column_names) == (0, ["id", "length", "0/mean", "3/mean", "3/max"])


def test_h5_is_the_file_itself(tmp_path: Path) -> None:
    source = write(tmp_path / "in.h5", 2, residues=True)
    content = source.read_bytes()
    choose_writer(tmp_path / "out.h5", ["residues"])(source, tmp_path / "out.h5")
    assert (tmp_path / "out.h5").read_bytes() == content
    assert read_embeddings(tmp_path / "out.h5").ids == ["p0_菌", "p1_菌"]
    assert not source.exists()


@pytest.mark.parametrize("rows", [0, 5])
def test_h5ad_has_the_first_matrix_as_x_and_the_others_in_obsm(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in blocks of two rows."""
    blocks = tables.EmbeddingsFile.blocks
    monkeypatch.setattr(tables.EmbeddingsFile, "blocks", lambda file, names: blocks(file, names, block_rows=2))
    anndata = pytest.importorskip(
        "anndata", reason="anndata is not installed, being no dependency; .ci/run installs it"
    )
    output = tmp_path / "out.h5ad"
    choose_writer(output, ["mean", "max"])(write(tmp_path / "in.h5", rows), output)
    found = anndata.read_h5ad(output)
    assert found.obs_names.tolist() == [f"p{row}_菌" for row in range(rows)]
    assert found.obs["length"].tolist() == [1, 2, 3, 4, 5][:rows]
    np.testing.assert_array_equal(found.X, vectors(rows, 4))
    assert sorted(found.obsm) == ["3_max", "3_mean"]
    np.testing.assert_array_equal(found.obsm["3_mean"], vectors(rows, 7))


@pytest.mark.parametrize(
    ("name", "pooling", "problem"),
    [
        ("out.csv", ["mean"], "out.csv: the suffix says what to write; known are .h5, .npz, .parquet, .h5ad"),
        ("out", ["mean"], "out: the suffix says what to write; known are .h5, .npz, .parquet, .h5ad"),
        ("out.parquet", ["mean", "residues"], "out.parquet: has no place for a vector a residue; write .h5 or .npz"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, pooling: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_writer(Path(name), pooling)
    assert str(refused.value) == problem


@pytest.mark.parametrize("library", ["pyarrow", "anndata"])
def test_a_library_that_is_not_there_is_named_with_its_command(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the environment of the tests has it: nothing is found on an empty path."""
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    output = tmp_path / f"out.{'parquet' if library == 'pyarrow' else 'h5ad'}"
    with pytest.raises(ConfigError) as refused:
        choose_writer(output, ["mean"])
    command = f"{sys.executable} -m pip install {library}"
    assert str(refused.value) == f"{output}: needs the Python package {library}; run {command}"
