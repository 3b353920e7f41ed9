"""``holdfast embed``: one file through one model, without Snakemake, in a pool of its own that leaves nothing."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from holdfast.models.registry import read_prepared
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records

from tests.workflow.conftest import DEMO, HOLDFAST, TIMEOUT_S, embedded


def embed(fasta: Path, model: str | Path, output: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [*HOLDFAST, "embed", fasta, "--model", model, "--output", output, "--device", "cpu", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(output.parents[1] / "cache")}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)


@pytest.mark.parametrize(
    ("name", "model", "source"),
    [
        ("phage_proteins.faa", "esm2", None),
        ("phage_heldout.fna", "dnabert_s", "synthetic:dnabert_s_tiny"),
    ],
)
def test_a_file_is_embedded_record_by_record(
    models: Path, tmp_path: Path, name: str, model: str, source: str | None
) -> None:
    """With a prepared model, or with a source that is prepared once and then found in the user's cache."""
    output = tmp_path / "made" / "embeddings.h5"
    output.parent.mkdir()
    ended = embed(DEMO / "data" / name, source or models / model, output)
    known = read_prepared(models / model)
    records = [*read_records(DEMO / "data" / name, Alphabet[known.alphabet.upper()])]
    made = f"synthetic {known.family} on CPU"
    said = rf"{output}: {len(records)} embeddings of {len(records)} records, {made}, \d+ threads\n"
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(said, ended.stdout)
    found = read_embeddings(output)
    mean = f"model/{known.layers}/mean"
    assert list(found.ids) == [record.id for record in records]
    assert found.matrices[mean].dtype == np.float32
    expected = embedded(models, model, [record.sequence for record in records])
    np.testing.assert_allclose(found.matrices[mean], expected, atol=1e-5)
    assert found.attributes["matrices"][mean]["weights_sha256"] == known.weights_sha256
    assert sorted(output.parent.iterdir()) == [output, output.with_suffix(".records.tsv")]

    if source is None:
        assert ended.stderr == ""
        return
    (kept,) = (tmp_path / "cache/holdfast/models").iterdir()
    assert ended.stderr == f"holdfast: preparing {source} in {kept}, once\n"
    again = embed(DEMO / "data" / name, source, output, "--store-dtype", "float16")
    assert (again.returncode, again.stderr) == (0, "")
    assert read_embeddings(output).matrices[mean].dtype == np.float16
    np.testing.assert_array_equal(read_embeddings(output).matrices[mean], found.matrices[mean].astype(np.float16))


def test_what_cannot_be_embedded_is_one_line(models: Path, tmp_path: Path) -> None:
    proteins = DEMO / "data/phage_proteins.faa"
    broken = tmp_path / "broken.faa"
    broken.write_text(">p\nMKV\n>p\nMKV\n")
    nowhere = tmp_path / "nowhere/embeddings.h5"
    for fasta, output, status, words in (
        (proteins, nowhere, 1, f"{nowhere.parent}: no such directory, make it first"),
        (broken, tmp_path / "e.h5", 2, f"{broken}, line 3, record 'p': the id is that of line 1 too"),
    ):
        ended = embed(fasta, models / "esm2", output)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (status, "", 1)
        assert ended.stderr.startswith(f"holdfast: error: {words}")
        assert not output.exists()
    assert list(tmp_path.iterdir()) == [broken]


def test_a_record_with_other_letters_is_left_out_and_told(models: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.faa"
    odd.write_text(">p\nMKV\n>q\nMK1\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "e.npz").symlink_to("elsewhere/there.npz")
    ended = embed(odd, models / "esm2", tmp_path / "e.npz")
    assert ended.returncode == 0, ended.stderr
    warning = "not all records were embedded as they are (1 bad_letters); the table of records says which"
    assert ended.stderr == f"holdfast: warning: {odd}: {warning}\n"
    with np.load(tmp_path / "elsewhere/there.npz") as made:
        assert made["ids"].tolist() == ["p"]
    assert (tmp_path / "e.npz").is_symlink()
    assert (tmp_path / "e.records.tsv").read_text().splitlines()[1:] == [
        "p\t3\t3\tok\t",
        "q\t3\t0\tbad_letters\t'1' in column 3 of line 4 is no IUPAC protein letter",
    ]
