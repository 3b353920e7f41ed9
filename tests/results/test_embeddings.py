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
from holdfast.models.registry import KINDS, Output
from holdfast.results.embeddings import EmbeddingsFile, read_embeddings
from holdfast.results.export import export_embeddings
from holdfast.results.layout import FORMAT_VERSION
from holdfast.results.writer import EmbeddingsWriter

from tests.results.samples import DNA, describe_model

ROOT = Path(__file__).parents[2]
MEAN = Output(6, "mean")
IDS = ["c1", "quote\"'|/:;,\\", "Bacillus_ö_菌_🦠", "x" * 300, "NA", "#", "c6"]
STATUSES = ["ok", "truncated", "windowed", "ok", "too_short", "bad_letters", "failed"]
SOFTWARE = {"holdfast": "0.1.0", "torch": "2.13.0"}


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
    with EmbeddingsWriter.create(path, "sample ä", "contigs", 500, 1, job="s-1") as writer:
        writer.append_records(IDS[:2], [10, 3_000_000_000], [10, 2_500_000_000], STATUSES[:2])
        writer.append_records(IDS[2:], [1, 2, 3, 4, 5], [1, 2, 0, 0, 0], STATUSES[2:])
        for start in range(0, rows, block_rows):
            part = slice(start, start + block_rows)
            numbers = (columns[name][part] for name in ("record", "chunk", "frame"))
            writer.append_rows(names[part].tolist(), columns["length"][part], digests[part], *numbers)
        writer.name_input("ef" * 32)
    return columns


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    columns = create(path)
    esm2, dna = vectors(7, 40), vectors(7, 24, seed=2)
    protein, nucleotide = describe_model(40, 6, synthetic=True), describe_model(24, 12, **DNA, source="facebook/dna")
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix("my-esm2", protein, MEAN, "float16", "fp32", [esm2[:5], esm2[5:]])
        writer.write_matrix("dna", nucleotide, Output(12, "mean"), "float32", "bf16", iter([dna]))
    found = read_embeddings(path)
    assert found.ids == columns["ids"].tolist()
    for name in ("length", "sha256", "record", "chunk", "frame"):
        np.testing.assert_array_equal(getattr(found, name), columns[name])
        assert getattr(found, name).dtype == columns[name].dtype
    assert found.sha256[3].tobytes().endswith(b"\0")
    assert found.records.ids == IDS
    assert found.records.length.tolist() == [10, 3_000_000_000, 1, 2, 3, 4, 5]
    assert found.records.residues_used.tolist() == [10, 2_500_000_000, 1, 2, 0, 0, 0]
    assert found.records.status == STATUSES
    assert list(found.matrices) == ["dna/12/mean", "my-esm2/6/mean"]
    np.testing.assert_array_equal(found.matrices["my-esm2/6/mean"], esm2.astype(np.float16))
    np.testing.assert_array_equal(found.matrices["dna/12/mean"], dna)
    assert found.matrices["my-esm2/6/mean"].dtype == np.float16
    assert found.matrices["dna/12/mean"].dtype == np.float32
    assert found.residues == {}
    common = {"source_sha256": "ab" * 32, "weights_sha256": "cd" * 32, "pooling": "mean"}
    assert found.attributes == {
        "format": "holdfast-embeddings",
        "format_version": FORMAT_VERSION,
        "sample": "sample ä",
        "kind": "contigs",
        "chunk_length_bp": 500,
        "genetic_code": 1,
        "job": "s-1",
        "input_sha256": "ef" * 32,
        "complete": True,
        "software": SOFTWARE,
        "matrices": {
            "my-esm2/6/mean": {
                **common,
                "family": "esm",
                "alphabet": "protein",
                "width": 40,
                "source": "facebook/x",
                "synthetic": True,
                "layer": 6,
                "mean_of": "residues",
                "precision": "fp32",
            },
            "dna/12/mean": {
                **common,
                "family": "mosaic_bert",
                "alphabet": "nucleotide",
                "width": 24,
                "source": "facebook/dna",
                "synthetic": False,
                "layer": 12,
                "mean_of": "tokens",
                "precision": "bf16",
            },
        },
    }


def test_blocks_together_are_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    columns = create(path, rows=1000, block_rows=333)
    matrix = vectors(1000, 8)
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix("esm2", describe_model(8, 6), MEAN, "float32", "fp32", np.array_split(matrix, 9))
    with EmbeddingsFile(path) as reader:
        assert (reader.row_count, reader.record_count, reader.sample, reader.chunk_length_bp) == (
            1000,
            7,
            "sample ä",
            500,
        )
        blocks = list(reader.blocks(["esm2/6/mean"], block_rows=300))
        assert [len(block.ids) for block in blocks] == [300, 300, 300, 100]
        assert [name for block in blocks for name in block.ids] == columns["ids"].tolist()
        np.testing.assert_array_equal(np.concatenate([block.matrices["esm2/6/mean"] for block in blocks]), matrix)
        np.testing.assert_array_equal(np.concatenate([block.sha256 for block in blocks]), columns["sha256"])
        assert all(block.matrices == {} for block in reader.blocks())
        records = list(reader.record_blocks(block_rows=5))
        assert [name for block in records for name in block.ids] == IDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_rows_is_a_complete_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "embeddings.h5"
    with EmbeddingsWriter.create(path, "s", kind, *((300, 1) if kind == "contigs" else (0, 0))) as writer:
        writer.append_records([], [], [], [])
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix("esm2", describe_model(320, 6), MEAN, "float16", "fp16", [])
        counts = np.zeros(0, np.int64)
        writer.write_residues("esm2", describe_model(320, 6), Output(6, "residues"), "float16", "fp16", counts, [])
    found = read_embeddings(path)
    assert found.ids == found.records.ids == []
    assert found.matrices["esm2/6/mean"].shape == (0, 320)
    assert found.residues == {"esm2/6/residues": []}
    with EmbeddingsFile(path) as reader:
        assert list(reader.blocks(["esm2/6/mean"])) == []
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
    with pytest.raises(ResourceError, match=f"sample 'sample ä': esm2/6/mean gave.*{advice}"):  # noqa: SIM117
        with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
            writer.write_matrix("esm2", describe_model(4, 6), MEAN, "float16", "fp16", [matrix])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix("esm2", describe_model(4, 6), MEAN, "float32", "fp16", [np.nan_to_num(matrix)])
    assert read_embeddings(path).matrices["esm2/6/mean"][6, 3] == np.nan_to_num(matrix)[6, 3]


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError):  # noqa: PT012, SIM117
        with EmbeddingsWriter.create(tmp_path / "embeddings.h5", "s", "dna") as writer:
            writer.append_records(["a"], [5], [5], ["ok"])
            raise InputError("broken", "x.fasta")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    create(path)
    before = path.read_bytes()
    program = f"""
import os, signal, numpy
from holdfast.models.registry import Output
from holdfast.results.writer import EmbeddingsWriter
from tests.results.samples import describe_model
def blocks():
    yield numpy.ones((6, 4), numpy.float32)
    os.kill(os.getpid(), signal.SIGKILL)
with EmbeddingsWriter.reopen({str(path)!r}, {{}}) as writer:
    writer.write_matrix("esm2", describe_model(4, 6), Output(6, "mean"), "float16", "fp32", blocks())
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/workflow/scripts"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    with EmbeddingsWriter.reopen(path, SOFTWARE) as writer:
        writer.write_matrix("esm2", describe_model(4, 6), MEAN, "float32", "fp32", [vectors(7, 4)])
    np.testing.assert_array_equal(read_embeddings(path).matrices["esm2/6/mean"], vectors(7, 4))


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
        blocks = iter([vectors(500, 40), vectors(500, 40)])
        writer.write_matrix("esm2", describe_model(40, 6), MEAN, "float32", "fp32", blocks)


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


@pytest.mark.parametrize("shapes", [[(6, 4)], [(8, 4)], [(7, 5)], [(7, 4), (1, 4)]])
def test_a_matrix_has_a_row_for_every_row(tmp_path: Path, shapes: list[tuple[int, int]]) -> None:
    create(tmp_path / "embeddings.h5")
    matrices = [vectors(*shape) for shape in shapes]
    with pytest.raises(ValueError, match="matrix esm2/6/mean"):  # noqa: SIM117
        with EmbeddingsWriter.reopen(tmp_path / "embeddings.h5", SOFTWARE) as writer:
            writer.write_matrix("esm2", describe_model(4, 6), MEAN, "float16", "fp32", matrices)
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
        file.attrs["format_version"] = FORMAT_VERSION + 1


def truncated(path: Path) -> None:
    create(path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "no such file"),
        (lambda path: path.write_text("id\tx\n"), "no HDF5 file, or one cut short; give an embeddings file"),
        (foreign, "not an embeddings file"),
        (
            newer,
            "reads 3; a newer one wrote it: update Holdfast, or compute it again",
        ),
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
