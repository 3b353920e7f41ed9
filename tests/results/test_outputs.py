"""Several layers, poolings and residues in one results file: as h5py reads them, in blocks, and in hostile files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from holdfast.errors import InputError, ResourceError
from holdfast.models.registry import Output
from holdfast.results.embeddings import EmbeddingsFile, read_embeddings
from holdfast.results.export import export_embeddings
from holdfast.results.writer import EmbeddingsWriter

from tests.results.samples import describe_model

WIDTH = 8
COUNTS = np.array([5, 1, 130, 2])  # residues of each row; those of the third lie in three chunks of 64
IDS = ["a", "b/1", "c", "d"]
MODEL = describe_model(WIDTH, 6, source="synthetic:x", synthetic=True)
OUTPUTS = [Output(layer, pooling) for layer in (0, 6) for pooling in ("mean", "cls", "max")]


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


RESIDUES = {layer: vectors(int(COUNTS.sum()), layer + 50) for layer in (0, 6)}


def write(path: Path) -> Path:
    """Four proteins, the last of them truncated, by one model with two layers and all poolings."""
    used = COUNTS.tolist()
    with EmbeddingsWriter.create(path, "s", "proteins", job="s-1") as writer:
        writer.append_records(IDS, [*used[:3], 900], used, ["ok", "ok", "windowed", "truncated"])
        writer.append_rows(IDS, used, [bytes(32)] * 4, range(4), [0] * 4, [0] * 4)
    with EmbeddingsWriter.reopen(path, {}) as writer:
        for number, output in enumerate(OUTPUTS):
            writer.write_matrix("my_model", MODEL, output, "float32", "bf16", [vectors(4, number)])
        for layer, values in RESIDUES.items():
            blocks: Iterator[np.ndarray] = iter(np.array_split(values.astype(np.float16), 7))
            writer.write_residues("my_model", MODEL, Output(layer, "residues"), "float16", "bf16", COUNTS, blocks)
    return path


def test_plain_h5py_finds_every_layer_and_pooling_under_its_name(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "embeddings.h5")) as file:
        assert {*file} == {"ids", "length", "sha256", "record", "chunk", "frame", "records", "my_model"}
        assert [*file["my_model"]] == ["0", "6"]
        for number, output in enumerate(OUTPUTS):
            matrix = file[f"my_model/{output.layer}/{output.pooling}"]
            np.testing.assert_array_equal(matrix[:], vectors(4, number))
            assert dict(matrix.attrs) == {
                "family": "esm",
                "alphabet": "protein",
                "width": WIDTH,
                "source": "synthetic:x",
                "source_sha256": "ab" * 32,
                "weights_sha256": "cd" * 32,
                "synthetic": True,
                "layer": output.layer,
                "pooling": output.pooling,
                "mean_of": "residues",
                "precision": "bf16",
            }
        for layer, values in RESIDUES.items():
            group = file[f"my_model/{layer}"]
            assert {*group} == {"mean", "cls", "max", "residues", "offsets"}
            assert (group["residues"].shape, group["residues"].dtype) == ((138, WIDTH), np.float16)
            assert (group["residues"].attrs["pooling"], group["residues"].attrs["layer"]) == ("residues", layer)
            assert (group["offsets"].dtype, group["offsets"][:].tolist()) == (np.int64, [0, 5, 6, 136, 138])
            for row, name in enumerate(file["ids"].asstr()):
                start, stop = group["offsets"][row : row + 2]
                assert (name, stop - start) == (IDS[row], file["length"][row])
                np.testing.assert_array_equal(group["residues"][start:stop], values[start:stop].astype(np.float16))
        status = file["records/status"]
        names = {code: name for name, code in h5py.check_enum_dtype(status.dtype).items()}
        assert [names[code] for code in status[:]] == ["ok", "ok", "windowed", "truncated"]
        assert file["records/length"][:].tolist() == [5, 1, 130, 900]
        assert file["records/residues_used"][:].tolist() == [5, 1, 130, 2]


def test_the_reader_gives_rows_of_residues_and_the_matrix_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "embeddings.h5")
    bounds = np.cumsum([0, *COUNTS])
    with EmbeddingsFile(path) as file:
        poolings = ("mean", "cls", "max", "residues")
        assert list(file.matrices) == [f"my_model/{layer}/{pooling}" for layer in (0, 6) for pooling in poolings]
        assert list(file.models) == ["my_model"]
        assert file.matrix_of("my_model") == "my_model/6/mean"
        assert file.matrix_of("my_model", "max", 0) == "my_model/0/max"
        assert file.matrix_of("my_model", "residues") == "my_model/6/residues"
        assert file.matrix_of("my_model", "mean", 3) is None
        assert file.matrix_of("other") is None
        for start, stop in ((0, 4), (1, 3), (3, 9), (4, 6)):
            found = file.residues("my_model/0/residues", start, stop)
            assert [len(rows) for rows in found] == COUNTS[start:stop].tolist()
            for row, values in enumerate(found, start):
                np.testing.assert_array_equal(values, RESIDUES[0][bounds[row] : bounds[row + 1]].astype(np.float16))
        records, matrix = file.take(np.array([1, 3]), "my_model/0/max")
        assert records.tolist() == [1, 3]
        np.testing.assert_array_equal(matrix, vectors(4, OUTPUTS.index(Output(0, "max")))[[1, 3]])
    whole = read_embeddings(path)
    assert {*whole.matrices} == {f"my_model/{output.name}" for output in OUTPUTS}
    assert {name: [len(rows) for rows in values] for name, values in whole.residues.items()} == {
        f"my_model/{layer}/residues": COUNTS.tolist() for layer in (0, 6)
    }


def test_residues_that_are_too_few_or_too_many_or_no_numbers_leave_the_file_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    with EmbeddingsWriter.create(path, "s", "proteins") as writer:
        writer.append_records(["a"], [3], [3], ["ok"])
        writer.append_rows(["a"], [3], [bytes(32)], [0], [0], [0])
    before = path.read_bytes()
    wrong = [
        (vectors(2, 0), ValueError, "has 2 of 3 rows"),
        (vectors(4, 0), ValueError, "no place for"),
        (np.full((3, WIDTH), np.inf, np.float16), ResourceError, "larger than float16 holds, or not finite; set store"),
    ]
    output, counts = Output(6, "residues"), np.array([3])
    for values, error, problem in wrong:
        with pytest.raises(error, match=problem):  # noqa: SIM117
            with EmbeddingsWriter.reopen(path, {}) as writer:
                writer.write_residues("m", MODEL, output, "float16", "fp16", counts, [values])
        assert path.read_bytes() == before


def test_rows_that_fail_are_taken_out_and_their_records_say_why(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    with EmbeddingsWriter.create(path, "s", "proteins") as writer:
        writer.append_records(["a", "b", "c", "d"], [3, 4, 5, 6], [3, 4, 5, 0], ["ok"] * 3 + ["bad_letters"])
        writer.append_rows(
            ["a", "b", "c"], [3, 4, 5], [bytes([row]) * 32 for row in range(3)], range(3), [0] * 3, [0] * 3
        )
    with EmbeddingsWriter.reopen(path, {}) as writer:
        failed = writer.fail_rows(np.array([True, False, True]), ["too_long", "failed"])
        assert failed == [("a", 0), ("c", 2)]
        counts = {name: count for name, count in writer.count_statuses().items() if count}
        assert counts == {"ok": 1, "too_long": 1, "bad_letters": 1, "failed": 1}
        writer.write_matrix("m", MODEL, Output(6, "mean"), "float32", "fp32", [vectors(1, 0)])
    found = read_embeddings(path)
    assert (found.ids, found.record.tolist(), found.sha256[0].tolist()) == (["b"], [1], [1] * 32)
    assert found.records.status == ["too_long", "ok", "failed", "bad_letters"]
    assert found.records.residues_used.tolist() == [0, 4, 0, 0]


@pytest.mark.parametrize(("row", "offset"), [(1, 7), (2, 3), (2, 10**9), (1, -1), (0, -3), (3, 139)])
def test_offsets_out_of_order_are_refused_and_nothing_is_exported(tmp_path: Path, row: int, offset: int) -> None:
    path = write(tmp_path / "embeddings.h5")
    with h5py.File(path, "r+") as file:
        file["my_model/6/offsets"][row] = offset
    for read in (read_embeddings, lambda path: export_embeddings(path, "my_model", tmp_path / "out.h5", "residue")):
        with pytest.raises(InputError, match=r"embeddings\.h5: .*offsets of my_model/6/residues are out of order"):
            read(path)
    assert list(tmp_path.iterdir()) == [path]


def elsewhere(file: h5py.File, name: str) -> None:
    """Have HDF5 read a matrix from the bytes of another file."""
    shape, attributes = file[name].shape, dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    file[name].attrs.update(attributes)


def virtual(file: h5py.File, name: str) -> None:
    """Have a matrix be a view of another file's."""
    layout = h5py.VirtualLayout(file[name].shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", name, file[name].shape)
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_virtual_dataset(name, layout)
    file[name].attrs.update(attributes)


def linked(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("other.h5", name)


def compressed(file: h5py.File, name: str) -> None:
    """Have few bytes become many."""
    attributes, chunks = dict(file[name].attrs), file[name].chunks
    del file[name]
    made = file.create_dataset(name, (4, WIDTH), "f4", maxshape=(None, WIDTH), chunks=chunks, compression="gzip")
    made.attrs.update(attributes)


def never_written(file: h5py.File, name: str) -> None:
    """A matrix of a million million rows for which there are no bytes."""
    file[name].resize(10**12, axis=0)


def moved(file: h5py.File, name: str) -> None:
    file.move(name, name.replace("/6/", "/5/"))


def without_offsets(file: h5py.File, name: str) -> None:
    del file["my_model/6/offsets"]


def floating_offsets(file: h5py.File, name: str) -> None:
    values = file["my_model/6/offsets"][:]
    del file["my_model/6/offsets"]
    file.create_dataset("my_model/6/offsets", data=values.astype("f8"), maxshape=(None,), chunks=(1024,))


def longer_offsets(file: h5py.File, name: str) -> None:
    file["my_model/6/offsets"].resize(6, axis=0)


def no_group(file: h5py.File, name: str) -> None:
    """A model that is a dataset, so long that nobody should go through it."""
    file.create_dataset("b", (10**15,), "u1", chunks=(1024,))


def no_layer(file: h5py.File, name: str) -> None:
    file.move("my_model/6", "my_model/last")


def other_kind(file: h5py.File, name: str) -> None:
    file[name].attrs["pooling"] = "max"


def lacking(file: h5py.File, name: str) -> None:
    del file[name].attrs["weights_sha256"]


def not_plain(file: h5py.File, name: str) -> None:
    file[name].attrs["layer"] = [6, 6]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        *(
            (spoil, "my_model/6/mean is not stored")
            for spoil in (elsewhere, virtual, linked, compressed, never_written)
        ),
        (moved, "my_model/5/mean says that it is 6/mean"),
        (other_kind, "my_model/6/mean says that it is 6/max"),
        (without_offsets, "offsets"),
        *((spoil, "my_model/6/offsets is not stored") for spoil in (floating_offsets, longer_offsets)),
        (no_group, "b is no group of layers"),
        (no_layer, "'last'"),
        (lacking, "weights_sha256"),
        (not_plain, "layer must be a whole number"),
    ],
)
def test_a_file_of_another_making_is_refused_before_its_values_are_read(
    tmp_path: Path, spoil: Callable[[h5py.File, str], None], problem: str
) -> None:
    path = write(tmp_path / "embeddings.h5")
    write(tmp_path / "other.h5")
    with h5py.File(path, "r+") as file:
        spoil(file, "my_model/6/mean")
    with pytest.raises(InputError, match=rf"embeddings\.h5: not a readable HDF5 file \(.*{problem}"):
        EmbeddingsFile(path)
