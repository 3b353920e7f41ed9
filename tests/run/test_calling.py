"""Which small samples one process calls, and what it leaves of them."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from holdfast.results.training import Network
from holdfast.run.calling import SMALL_BYTES, Task, call_small, find_small
from holdfast.run.client import FETCHED
from holdfast.run.config import Sample
from holdfast.spool.job import Receipt, digest_of

from tests.results.samples import FEATURE_WIDTH, write_features
from tests.run.plans import CONFIG

TABLES = ["chunks.tsv", "contigs.tsv", "frames.tsv", "regions.bed", "regions.tsv", "virus.fna"]
ENTRY = Sample("a", "a.fna", "contigs", "", "")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results with the receipt of a sample."""
    (tmp_path / "results/a").mkdir(parents=True)
    (tmp_path / "results/a/receipt.json").touch()
    return tmp_path / "results"


def found(results: Path, spooled: Path, anew: bool = False) -> list[Path]:
    """The embeddings that are called, of the one sample whose receipt names some in the spool."""
    receipt = Receipt("a-0", "a", "done", embeddings=str(spooled))
    tasks = find_small([(ENTRY, receipt)], results, results.parent / "made", [], anew)
    return [task.embeddings for task in tasks]


def test_the_embeddings_that_are_called_are_those_of_the_receipt(results: Path, tmp_path: Path) -> None:
    spooled, collected, fetched = tmp_path / "embeddings.h5", results / "a/embeddings.h5", results / "a" / FETCHED
    assert found(results, spooled) == []
    collected.touch()
    assert found(results, spooled) == [collected]
    fetched.touch()
    assert found(results, spooled) == [], "the collected ones are those of an earlier run"
    spooled.touch()
    assert found(results, spooled) == [spooled]
    os.truncate(spooled, SMALL_BYTES + 1)
    assert found(results, spooled) == []


def test_what_is_called_and_not_older_is_left(results: Path, tmp_path: Path) -> None:
    spooled, table = tmp_path / "embeddings.h5", results / "a/contigs.tsv"
    spooled.touch()
    table.touch()
    receipt = results / "a/receipt.json"
    os.utime(receipt, (100, 100))
    os.utime(table, (100, 100))
    assert found(results, spooled) == []
    assert found(results, spooled, anew=True) == [spooled]
    os.utime(receipt, (101, 101))
    assert found(results, spooled) == [spooled]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sample_that_cannot_be_called_is_left_and_no_other(
    tmp_path: Path, processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of one the sequence file is another, of one the embeddings are none, of one a column is missing."""
    network = tmp_path / "classifier.safetensors"
    Network(FEATURE_WIDTH).classifier({}, "synthetic").save(network)
    features = np.random.default_rng(1).normal(size=(4, FEATURE_WIDTH))
    tasks = []
    for name in ("a", "b", "c", "d", "e"):
        fasta = tmp_path / f"{name}.fna"
        fasta.write_text("".join(f">r{number}\n{'ACGT' * 500}\n" for number in range(4)))
        embeddings = write_features(tmp_path / name, features, [0, 0, 1, 2], input_sha256=digest_of(fasta))
        tasks.append(Task(name, embeddings, fasta, tmp_path / "made" / name))
    tasks[1].fasta.write_text(">r0\nACGT\n")
    tasks[2].embeddings.write_bytes(b"none")
    with h5py.File(tasks[3].embeddings, "r+") as file:
        del file["frame"]
    rules = {"calls": CONFIG["calls"], "method": {}, "virnucpro": False, "calibration": None}
    assert call_small(tasks, processes, "virus.fna", {"classifier": network, **rules}) == 2
    said = capfd.readouterr().err.splitlines()
    assert sorted(line.split(": left to classify_contigs: ")[0] for line in said) == ["b", "c", "d"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a", "e"]
    assert sorted(path.name for path in (tmp_path / "made/a").iterdir()) == TABLES
