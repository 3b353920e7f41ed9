"""``holdfast embed`` and :func:`holdfast.embed` from end to end, with a small synthetic model that the cache keeps."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import holdfast
import numpy as np
import pandas
import pytest
import torch
from holdfast.cli import main
from holdfast.errors import ConfigError, HoldfastError
from holdfast.models.registry import Output, load_tokenizer, read_prepared

ENTRY = Path(__file__).parents[2] / "workflow/scripts/entry.py"
SOURCE = "synthetic:esmc_tiny"
WIDTH, LAYERS = 64, 3
LONG = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
RECORDS = {"short": "MKV", "long": LONG, "stop": "MAGICWAND*", "empty": "", "again": "MKV"}
UNUSUAL = "not all records were embedded as they are"
TRUNCATED = {"short": "MKV", "long": LONG[:25], "stop": "MAGICWAND", "again": "MKV"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(cache: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, ENTRY, "embed", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def expected(
    directory: Path, sequences: Sequence[str], outputs: Sequence[Output], window: int | None = None
) -> dict[str, np.ndarray]:
    """What the model gives, without a pool, of one sequence at a time; by ``LAYER/POOLING``, one behind the other."""
    encoder = holdfast.open_model(directory, "cpu", "fp32")
    tokenize = load_tokenizer(read_prepared(directory), directory)
    found: dict[str, list[np.ndarray]] = {output.name: [] for output in outputs}
    for sequence in sequences:
        tokens, lengths = tokenize([sequence])
        values = encoder.embed(torch.from_numpy(tokens), lengths.tolist(), outputs, window)
        for output, value in values.items():
            found[output.name].append(value.numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


def write(directory: Path) -> Path:
    fasta = directory / "proteins.faa"
    fasta.write_text("".join(f">{name} of somewhere\n{sequence}\n" for name, sequence in RECORDS.items()))
    return fasta


def test_layers_poolings_and_residues_of_truncated_proteins(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a source that nobody has prepared yet to a file that plain h5py reads, and the same as numpy's."""
    cache = tmp_path_factory.mktemp("empty")
    fasta, output = write(tmp_path), tmp_path / "out.h5"
    words = [fasta, "--model", SOURCE, "--layers", "0,last", "--pooling", "mean,max,residues", "--device", "cpu"]
    words += ["--long", "truncate", "--max-length", "25"]
    ended = run(cache, *words, "--output", output)
    assert ended.returncode == 0, ended.stderr
    (directory,) = (cache / "holdfast/models").iterdir()
    once, warning = ended.stderr.splitlines()
    assert once == f"holdfast: preparing {SOURCE} in {directory}, once"
    assert warning.startswith(f"holdfast: warning: {fasta}: {UNUSUAL} (1 truncated, 1 too_short)")
    assert ended.stdout.startswith(f"{output}: 4 embeddings of 5 records, synthetic esmc on CPU, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "out.records.tsv", "proteins.faa"]
    outputs = [Output(layer, pooling) for layer in (0, LAYERS) for pooling in ("mean", "max", "residues")]
    wanted = expected(directory, list(TRUNCATED.values()), outputs)
    lengths = [len(sequence) for sequence in TRUNCATED.values()]
    with h5py.File(output) as file:
        assert file["ids"].asstr()[:].tolist() == list(TRUNCATED)
        assert file["length"][:].tolist() == lengths
        assert [*file["model"]] == ["0", "3"]
        for layer in ("0", "3"):
            assert file[f"model/{layer}/offsets"][:].tolist() == np.cumsum([0, *lengths]).tolist()
            for pooling in ("mean", "max", "residues"):
                matrix = file[f"model/{layer}/{pooling}"]
                close(matrix[:], wanted[f"{layer}/{pooling}"])
                assert (matrix.dtype, matrix.shape[1], matrix.attrs["width"]) == (np.float32, WIDTH, WIDTH)
                assert (matrix.attrs["source"], matrix.attrs["family"]) == (SOURCE, "esmc")
                assert (matrix.attrs["synthetic"], matrix.attrs["precision"]) == (True, "fp32")
        status = file["records/status"]
        names = {code: name for name, code in h5py.check_enum_dtype(status.dtype).items()}
        assert [names[code] for code in status[:]] == ["ok", "truncated", "ok", "too_short", "ok"]
        assert file["records/length"][:].tolist() == [3, 70, 9, 0, 3]
        assert file["records/residues_used"][:].tolist() == [3, 25, 9, 0, 3]

    ended = run(cache, *words, "--output", tmp_path / "out.npz")
    assert (ended.returncode, ended.stderr) == (0, f"{warning}\n")
    with np.load(tmp_path / "out.npz") as arrays:
        assert sorted(arrays) == sorted(["ids", "length", "0/offsets", "3/offsets", *wanted])
        assert arrays["ids"].tolist() == list(TRUNCATED)
        for name, values in wanted.items():
            close(arrays[name], values)


def test_parquet_of_windows_in_half_precision(tmp_path: Path, cache: Path) -> None:
    fasta, output = write(tmp_path), tmp_path / "out.parquet"
    words = ["--long", "window", "--max-length", "20", "--device", "cpu", "--store-dtype", "float16"]
    ended = run(cache, fasta, "--model", SOURCE, "--output", output, *words)
    assert ended.returncode == 0, ended.stderr
    assert "4 embeddings of 5 records, " in ended.stdout
    assert f"{UNUSUAL} (1 windowed, 1 too_short)" in ended.stderr
    table = pandas.read_parquet(output)
    assert table.columns.tolist() == ["id", "length", "3/mean"]
    assert table["id"].tolist() == ["short", "long", "stop", "again"]
    assert table["length"].tolist() == [3, 70, 9, 3]
    (directory,) = (cache / "holdfast/models").iterdir()
    sequences = ["MKV", LONG, "MAGICWAND", "MKV"]
    windowed = expected(directory, sequences, [Output(LAYERS, "mean")], window=20)["3/mean"]
    found = np.stack(table["3/mean"].tolist())
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, windowed, rtol=1e-3, atol=1e-3)
    whole = expected(directory, sequences, [Output(LAYERS, "mean")])["3/mean"]
    assert np.abs(whole[1] - windowed[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("out.csv", "out.csv: the suffix says what to write; known are .h5, .npz, .parquet, .h5ad"),
        ("o.parquet --pooling residues", "o.parquet: has no place for a vector a residue; write .h5 or .npz"),
        ("none/o.h5", "none: no such directory, make it first"),
        ("o.h5 --layers 0,end", "--layers 0,end: 'end' is not a number from 0 on, or last"),
        ("o.h5 --pooling mean,std", "--pooling mean,std: 'std' is not one of mean, cls, max, residues"),
        ("o.h5 --layers 4", "layers: 4 is beyond the model, whose layers are 0 to 3"),
        ("o.h5 --pooling cls --long window", "pooling: cls makes no sense where long is window; leave it out"),
        ("o.h5 --long truncate", "long: truncate needs max_length, as the model has no limit of its own"),
        (
            "o.h5 --max-length 25",
            "max_length: means nothing for whole sequences; choose long: window, truncate or refuse",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_computed(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    problem: str,
) -> None:
    """With one line; what concerns the output, before the model is even prepared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    fasta = write(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["embed", str(fasta), "--model", SOURCE, "--output", *words.split()])
    assert ended.value.code == (1 if words.startswith("none") else 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == f"holdfast: error: {problem}"
    assert list(tmp_path.iterdir()) == [fasta]


def test_an_output_that_cannot_be_written_is_refused_before_a_model_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for output in (tmp_path / "out.txt", tmp_path / "none/out.h5"):
        with pytest.raises(SystemExit):
            main(["embed", str(write(tmp_path)), "--model", SOURCE, "--output", str(output)])
        assert capsys.readouterr().err.startswith("holdfast: error: ")
    assert not (tmp_path / "cache").exists()


def test_in_python_an_array_or_a_dict_of_them(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    sequences = ["MKV", LONG, "MKV"]
    found = holdfast.embed(sequences, SOURCE, device="cpu")
    (directory,) = (cache / "holdfast/models").iterdir()
    outputs = [Output(layer, pooling) for layer in (1, LAYERS) for pooling in ("mean", "cls", "residues")]
    wanted = expected(directory, sequences, outputs)
    assert (found.shape, found.dtype) == ((3, WIDTH), np.float32)
    close(found, wanted["3/mean"])
    np.testing.assert_array_equal(found[0], found[2])

    residues = holdfast.embed(sequences, str(directory), layers=1, pooling="residues", device="cpu")
    assert [rows.shape for rows in residues] == [(3, WIDTH), (70, WIDTH), (3, WIDTH)]
    close(np.concatenate(residues), wanted["1/residues"])

    several = holdfast.embed(sequences, SOURCE, layers=[1, "last"], pooling=["mean", "cls", "residues"], device="cpu")
    assert sorted(several) == sorted(wanted)
    for name, values in several.items():
        close(np.concatenate(values) if name.endswith("residues") else values, wanted[name])
    assert list(holdfast.embed(sequences, SOURCE, layers=["last"], device="cpu")) == ["3/mean"]


def test_in_python_dna_is_embedded_by_a_model_of_dna(models: dict[str, Path]) -> None:
    sequences = ["ACGTACGTNACGT", "GATTACA"]
    found = holdfast.embed(sequences, str(models["dnabert_s"]), device="cpu")
    layers = read_prepared(models["dnabert_s"]).layers
    close(found, expected(models["dnabert_s"], sequences, [Output(layers, "mean")])[f"{layers}/mean"])


def test_in_python_what_cannot_be_embedded_is_an_error(models: dict[str, Path]) -> None:
    esm2 = str(models["esm2"])
    with pytest.raises(
        HoldfastError,
        match=r"^sequence 1 of 2 has no embedding: too_long, model takes 20 at most \(long: refuse\); leave it out$",
    ):
        holdfast.embed(["MKV", LONG], esm2, long="refuse", max_length=20, device="cpu")
    with pytest.raises(ConfigError, match=r"layers: 7 is beyond the model, whose layers are 0 to 6$"):
        holdfast.embed(["MKV"], esm2, layers=7, device="cpu")


def test_a_sequence_with_other_letters_is_named_with_the_letter(models: dict[str, Path]) -> None:
    with pytest.raises(HoldfastError, match=r"^sequence 1 of 2 has no embedding: bad_letters, '1' in column 3 is no "):
        holdfast.embed(["MKV", "MK1"], str(models["esm2"]), device="cpu")


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ("MKV", "sequences is one text, 'MKV'; give a list of sequences"),
        (["MKV", None], "sequence 1 is None; give the letters of each as text"),
        ([float("nan")], "sequence 0 is nan; give the letters of each as text"),
        (["MKV", "\n>p\nMKV"], r"sequence 1 is '\n>p\nMKV'; give the letters of each as text"),
    ],
)
def test_what_is_no_list_of_sequences_is_told_before_anything_is_started(sequences: object, message: str) -> None:
    with pytest.raises(HoldfastError) as caught:
        holdfast.embed(sequences, "/nowhere", device="cpu")  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize("length", [1, 0, -5, 2**31])
def test_a_length_that_no_model_can_have_is_refused(models: dict[str, Path], length: int) -> None:
    with pytest.raises(ConfigError, match=rf"max_length: must be from 2 to 2147483647, is {length}$"):
        holdfast.embed(["MKV"], str(models["esm2"]), long="truncate", max_length=length, device="cpu")


def test_an_anndata_file_is_one_command(tmp_path: Path, cache: Path) -> None:
    anndata = pytest.importorskip("anndata")
    ended = run(cache, write(tmp_path), "--model", SOURCE, "--output", tmp_path / "out.h5ad")
    assert ended.returncode == 0, ended.stderr
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert found.shape == (4, WIDTH)
    assert found.obs_names.tolist() == ["short", "long", "stop", "again"]


def test_an_unknown_synthetic_model_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    ended = run(tmp_path / "cache", write(tmp_path), "--model", "synthetic:esmc_tin", "--output", tmp_path / "out.h5")
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "holdfast: error: synthetic:esmc_tin: no such architecture; did you mean synthetic:esmc_"
    )
    assert not (tmp_path / "cache").exists()
