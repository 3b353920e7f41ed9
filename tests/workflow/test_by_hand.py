"""``holdfast embed``: one file through one model, without Snakemake and without a pool."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from holdfast.models.registry import MODELS
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences.fasta import read_records

from .conftest import DEMO, SCRIPTS, embedded


def embed(models: Path, name: str, model: str, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / "holdfast embed", DEMO / "data" / name, "--model", model]
    command += ["--weights", models / model, "--output", output, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("name", "model"), [("phage_proteins.faa", "esm2"), ("phage_heldout.fna", "dnabert_s")])
def test_a_file_is_embedded_record_by_record(models: Path, tmp_path: Path, name: str, model: str) -> None:
    output = tmp_path / "embeddings.h5"
    ended = embed(models, name, model, output)
    records = [*read_records(DEMO / "data" / name, MODELS[model].alphabet)]
    said = f"{output}: {len(records)} embeddings of {len(records)} records, synthetic {model} on cpu\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")
    found = read_embeddings(output)
    assert list(found.ids) == [record.id for record in records]
    expected = embedded(models, model, [record.sequence for record in records])
    np.testing.assert_allclose(found.matrices[model], expected, atol=1e-5)
    assert list(tmp_path.iterdir()) == [output]


def test_an_output_that_cannot_be_written_is_named_before_anything_runs(models: Path, tmp_path: Path) -> None:
    ended = embed(models, "phage_proteins.faa", "esm2", tmp_path / "nowhere" / "embeddings.h5")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"holdfast: error: {tmp_path}/nowhere: no such directory, make it first\n"
