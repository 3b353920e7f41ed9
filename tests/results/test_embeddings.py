"""The results file against the arrays that went in, and what happens to it when a writer or the disk fails."""

import errno
import hashlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from holdfast.errors import HoldfastError, InputError, ResourceError
from holdfast.models.registry import KINDS, Prepared
from holdfast.results.embeddings import EmbeddingsFile, read_embeddings
from holdfast.results.export import export_embeddings
from holdfast.results.writer import EmbeddingsWriter

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
IDS = ["c1", "quote\"'|/:;,\\", "Bacillus_ö_菌_🦠", "x" * 300, "NA", "#", "c6"]
SOFTWARE = {"holdfast": "0.1.0", "torch": "2.13.0"}


def prepared(model: str, width: int) -> Prepared:
    return Prepared(model, {"layers": 6}, width, f"synthetic:{model}", "ab" * 32, "cd" * 32, True, {})


def vectors(rows: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def create(path: Path, rows: int = len(IDS), block_rows: int = 3) -> dict[str, np.ndarray]:
    """Write records and rows in blocks; return the columns that went in."""
    names = np.array([IDS[row % len(IDS)] + f"_chunk_{row + 1}F2" for row in range(rows)], object)
    digests = [hashlib.sha256(str(row).encode()).digest()[:-1] + b"\0" for row in range(rows)]
    columns = {
        "ids": names,
        "length": np.arange(rows, dtype=np.int32) + 165,
        "sha256": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        "record": np.arange(rows, dtype=np.int32) % len(IDS),
        "chunk": np.arange(rows, dtype=np.int32) + 1,
        "frame": np.arange(rows, dtype=np.uint8) % 6,
    }
    statuses = ["ok"] * 4 + ["too_short", "too_long", "failed"]
    with EmbeddingsWriter.create(path, "sample ä", "contigs", 500, job="s-1") as writer:
        writer.append_records(IDS[:2], [10, 3_000_000_000], statuses[:2])
        writer.append_records(IDS[2:], [1, 2, 3, 4, 5], statuses[2:])
        for start in range(0, rows, block_rows):
            part = slice(start, start + block_rows)
            numbers = (columns[name][part] for name in ("record", "chunk", "frame"))
            writer.append_rows(names[part].tolist(), columns["length"][part], digests[part], *numbers)
        writer.name_input("ef" * 32)
    return columns


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    columns = create(path)
    esm2, dnabert_s = vectors(7, 40), vectors(7, 24, seed=2)
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 40), [esm2[:5], esm2[5:]], "float16", "fp32")
        writer.write_matrix(prepared("dnabert_s", 24), iter([dnabert_s]), "float32", "fp32")
    found = read_embeddings(path)
    assert found.ids == columns["ids"].tolist()
    for name in ("length", "sha256", "record", "chunk", "frame"):
        np.testing.assert_array_equal(getattr(found, name), columns[name])
        assert getattr(found, name).dtype == columns[name].dtype
    assert found.sha256[3].tobytes().endswith(b"\0")
    assert found.records.ids == IDS
    assert found.records.length.tolist() == [10, 3_000_000_000, 1, 2, 3, 4, 5]
    assert found.records.status == ["ok"] * 4 + ["too_short", "too_long", "failed"]
    np.testing.assert_array_equal(found.matrices["esm2"], esm2.astype(np.float16))
    np.testing.assert_array_equal(found.matrices["dnabert_s"], dnabert_s)
    assert found.matrices["esm2"].dtype == np.float16
    assert found.matrices["dnabert_s"].dtype == np.float32
    assert found.attributes == {
        "format": "holdfast-embeddings",
        "format_version": 1,
        "sample": "sample ä",
        "kind": "contigs",
        "chunk_length_bp": 500,
        "job": "s-1",
        "input_sha256": "ef" * 32,
        "complete": True,
        "software": SOFTWARE,
        "models": {
            model: {
                "width": width,
                "source": f"synthetic:{model}",
                "source_sha256": "ab" * 32,
                "weights_sha256": "cd" * 32,
                "synthetic": True,
                "layer": 6,
                "pooling": pooling,
                "precision": "fp32",
            }
            for model, width, pooling in (("dnabert_s", 24, "mean of tokens"), ("esm2", 40, "mean of residues"))
        },
    }


def test_blocks_together_are_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    columns = create(path, rows=1000, block_rows=333)
    matrix = vectors(1000, 8)
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 8), np.array_split(matrix, 9), "float32", "fp32")
    with EmbeddingsFile(path) as reader:
        assert (reader.row_count, reader.record_count, reader.sample, reader.chunk_length_bp) == (
            1000,
            7,
            "sample ä",
            500,
        )
        blocks = list(reader.blocks(["esm2"], block_rows=300))
        assert [len(block.ids) for block in blocks] == [300, 300, 300, 100]
        assert [name for block in blocks for name in block.ids] == columns["ids"].tolist()
        np.testing.assert_array_equal(np.concatenate([block.matrices["esm2"] for block in blocks]), matrix)
        np.testing.assert_array_equal(np.concatenate([block.sha256 for block in blocks]), columns["sha256"])
        assert all(block.matrices == {} for block in reader.blocks())
        records = list(reader.record_blocks(block_rows=5))
        assert [name for block in records for name in block.ids] == IDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_rows_is_a_complete_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "embeddings.h5"
    with EmbeddingsWriter.create(path, "s", kind, 300 if kind == "contigs" else 0) as writer:
        writer.append_records([], [], [])
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 320), [], "float16", "fp16")
    found = read_embeddings(path)
    assert found.ids == found.records.ids == []
    assert found.matrices["esm2"].shape == (0, 320)
    with EmbeddingsFile(path) as reader:
        assert list(reader.blocks(["esm2"])) == []
        assert list(reader.record_blocks()) == []


@pytest.mark.parametrize(
    ("value", "advice"),
    [(70000.0, "70000, .*store_dtype: float32"), (np.nan, "precision: fp32"), (-np.inf, "precision: fp32")],
)
def test_a_value_that_cannot_be_stored_is_an_error_and_the_file_stays_incomplete(
    tmp_path: Path, value: float, advice: str
) -> None:
    path = tmp_path / "embeddings.h5"
    create(path)
    before = path.read_bytes()
    matrix = vectors(7, 4)
    matrix[6, 3] = value
    with pytest.raises(ResourceError, match=f"sample 'sample ä': esm2 gave.*{advice}"):  # noqa: SIM117
        with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
            writer.write_matrix(prepared("esm2", 4), [matrix], "float16", "fp16")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 4), [np.nan_to_num(matrix)], "float32", "fp16")
    assert read_embeddings(path).matrices["esm2"][6, 3] == np.nan_to_num(matrix)[6, 3]


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError):  # noqa: PT012, SIM117
        with EmbeddingsWriter.create(tmp_path / "embeddings.h5", "s", "dna") as writer:
            writer.append_records(["a"], [5], ["ok"])
            raise InputError("broken", "x.fasta")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    create(path)
    before = path.read_bytes()
    program = f"""
import os, signal, numpy
from holdfast.models.registry import Prepared
from holdfast.results.writer import EmbeddingsWriter
def blocks():
    yield numpy.ones((6, 4), numpy.float32)
    os.kill(os.getpid(), signal.SIGKILL)
with EmbeddingsWriter.reopen({str(path)!r}, {{}}) as writer:
    writer.write_matrix(Prepared("esm2", {{"layers": 6}}, 4, "", "", "", True, {{}}), blocks(), "float16", "fp32")
"""
    environment = {"PYTHONPATH": str(SCRIPTS)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 4), [vectors(7, 4)], "float32", "fp32")
    np.testing.assert_array_equal(read_embeddings(path).matrices["esm2"], vectors(7, 4))


@contextmanager
def refusing_above(size_bytes: int) -> Iterator[None]:
    """Have the system refuse to make any file larger than this, and expect its error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG


def write_matrix(path: Path) -> None:
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 40), iter([vectors(500, 40), vectors(500, 40)]), "float32", "fp32")


def test_a_write_that_the_system_refuses_is_its_error_and_the_file_stays_as_it_was(tmp_path: Path) -> None:
    """Without a crash, to which HDF5 tends when it cannot write ids; what is small is refused at the end only."""
    path, exported = tmp_path / "embeddings.h5", tmp_path / "exported.h5"
    with refusing_above(30_000):
        create(path, rows=20_000, block_rows=1000)
    with refusing_above(4000):
        create(path)
    assert list(tmp_path.iterdir()) == []
    create(path, rows=1000, block_rows=1000)
    before = path.read_bytes()
    with refusing_above(len(before) + 1000):
        write_matrix(path)
    assert path.read_bytes() == before
    write_matrix(path)
    with refusing_above(20_000):
        export_embeddings(path, "esm2", exported)
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_has_a_dataset_an_id_under_names_that_hdf5_takes(tmp_path: Path) -> None:
    path, exported = tmp_path / "embeddings.h5", tmp_path / "esm2.h5"
    ids = ["sp|P1|A_B", "50%/a", ".", "菌"]
    with EmbeddingsWriter.create(path, "s", "proteins", job="s-1") as writer:
        writer.append_records(ids, [9] * 4, ["ok"] * 4)
        writer.append_rows(ids, [9] * 4, [bytes(32)] * 4, range(4), [0] * 4, [0] * 4)
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix(prepared("esm2", 8), [vectors(4, 8)], "float16", "fp32")
    assert export_embeddings(path, "esm2", exported) == 4
    with h5py.File(exported) as file:
        assert sorted(file) == ["%2E", "50%25%2Fa", "sp|P1|A_B", "菌"]
        found = {dataset.attrs["original_id"]: dataset[:] for dataset in file.values()}
        known = [file.attrs[name] for name in ("sample", "kind", "job", "model", "layer", "pooling")]
    assert known == ["s", "proteins", "s-1", "esm2", 6, "mean of residues"]
    for name, vector in zip(ids, vectors(4, 8).astype(np.float16), strict=True):
        np.testing.assert_array_equal(found[name], vector)
        assert found[name].dtype == np.float16
    with pytest.raises(InputError, match=r"holds no embeddings of 'dnabert_s'; name a model that it has: esm2"):
        export_embeddings(path, "dnabert_s", tmp_path / "none.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.h5", "esm2.h5"]


@pytest.mark.parametrize("shapes", [[(6, 4)], [(8, 4)], [(7, 5)], [(7, 4), (1, 4)]])
def test_a_matrix_has_a_row_for_every_row(tmp_path: Path, shapes: list[tuple[int, int]]) -> None:
    create(tmp_path / "embeddings.h5")
    with pytest.raises(ValueError, match="matrix esm2"):  # noqa: SIM117
        with EmbeddingsWriter.reopen(tmp_path / "embeddings.h5", SOFTWARE) as writer:
            writer.write_matrix(prepared("esm2", 4), [vectors(*shape) for shape in shapes], "float16", "fp32")
    with pytest.raises(InputError, match="incomplete"):
        read_embeddings(tmp_path / "embeddings.h5")


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differ in number of rows"):  # noqa: SIM117
        with EmbeddingsWriter.create(tmp_path / "embeddings.h5", "s", "dna") as writer:
            writer.append_rows(["a", "b"], [1, 2], [bytes(32)], [0, 1], [0, 0], [0, 0])


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["ids"] = [1, 2]


def newer(path: Path) -> None:
    create(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2


def truncated(path: Path) -> None:
    create(path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "no such file"),
        (lambda path: path.write_text("id\tx\n"), "not a readable HDF5 file"),
        (foreign, "not an embeddings file"),
        (newer, "format 2, this version reads 1"),
        (truncated, "not a readable HDF5 file"),
        (create, "incomplete"),
    ],
)
def test_a_file_that_is_not_a_complete_one_of_ours_is_refused(
    tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    path = tmp_path / "embeddings.h5"
    make(path)
    with pytest.raises(HoldfastError, match=problem) as refusal:
        read_embeddings(path)
    assert str(path) in str(refusal.value)
