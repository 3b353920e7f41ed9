"""Crates of results that nobody ran: what is wrong with a record, and files that are not as their run wrote them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast.errors import ConfigError
from holdfast.run.crate import write_crate
from holdfast.run.provenance import CRATE, sha256
from holdfast.spool.job import Receipt, software
from rocrate.rocrate import ROCrate

LICENSE = "https://spdx.org/licenses/CC-BY-4.0"


def record(**changes: Any) -> dict[str, Any]:
    """A record of a run that wrote nothing, changed."""
    texts = {name: name for name in ("run", "command", "began", "ended")}
    objects: dict[str, Any] = {name: {} for name in ("config", "models", "pools", "samples", "outputs")}
    others = {"format": "holdfast-run", "format_version": 1, "directory": "/there", "results": "below/results"}
    weights = {"classifier_sha256": None, "synthetic_weights": []}
    return texts | objects | others | weights | {"software": software(["snakemake"])} | changes


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a directory of results with a record."""

    def make(**changes: Any) -> Path:
        (tmp_path / "run.json").write_text(json.dumps(record(**changes)))
        return tmp_path

    return make


def test_mistakes_have_their_messages(results: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json: is missing; give the directory of the results of a run"):
        write_crate(tmp_path, LICENSE)
    with pytest.raises(ConfigError, match="--license CC0: not a URL, such as https"):
        write_crate(results(), "CC0")
    with pytest.raises(ConfigError, match=r"run\.json: not the record of a run: format is not holdfast-run"):
        write_crate(results(format="holdfast-weights"), LICENSE)
    for changes in ({"format_version": 2}, {"samples": None}):
        told = {key: value for key, value in record(**changes).items() if value is not None}
        (tmp_path / "run.json").write_text(json.dumps(told))
        with pytest.raises(ConfigError, match=r"run\.json: the record of a run of another version"):
            write_crate(tmp_path, LICENSE)
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"run\.json: not the record of a run: not JSON"):
        write_crate(tmp_path, LICENSE)


def test_a_file_is_the_result_of_the_run_that_wrote_it_as_it_is(results: Callable[..., Path], tmp_path: Path) -> None:
    """Of two runs, the first by other code: one file only the first wrote, one both, one was changed, one is gone.

    Both know of the sample's job; its receipt names no run, as where it was finished while no consumer waited for it.
    """
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "embeddings.h5").write_bytes(b"")
    Receipt(job="s-1", sample="s", state="done").write(tmp_path / "s" / "receipt.json")
    samples = {"s": {"fasta": "s.fa", "state": "reused", "job": "s-1", "input_sha256": "5"}}
    for name in ("first.tsv", "both.tsv", "changed.tsv"):
        (tmp_path / name).write_text(name)
    now = {f"below/results/{path.name}": sha256(path) for path in tmp_path.glob("*.tsv")}
    old = now | {"below/results/both.tsv": "0", "below/results/changed.tsv": "0", "below/results/gone.tsv": "0"}
    (tmp_path / "runs").mkdir()
    other_code = {"holdfast": "0.0.1", "holdfast_sha256": "other", "torch": "1.0"}
    first = record(run="r1", began="1", ended=None, outputs=old, software=other_code, samples=samples)
    (tmp_path / "runs/r1.json").write_text(json.dumps(first))
    outputs = {"below/results/both.tsv": now["below/results/both.tsv"], "below/results/changed.tsv": "1"}
    assert write_crate(results(run="r2", began="2", outputs=outputs, samples=samples), LICENSE) == ["changed.tsv"]
    made = ROCrate(tmp_path)
    one, two = made.get("#r1"), made.get("#r2")
    assert [[file.id for file in run["result"]] for run in (one, two)] == [
        ["s/embeddings.h5", "first.tsv"],
        ["both.tsv"],
    ]
    assert [[read.get("sha256") for read in run["object"]] for run in (one, two)] == [["5", None], [None]]
    assert (one["instrument"].type, one["instrument"]["softwareVersion"]) == ("SoftwareApplication", "0.0.1")
    assert [each["name"] for each in one["instrument"]["softwareRequirements"]] == ["torch"]
    assert (one["actionStatus"], one["error"]) == ("http://schema.org/FailedActionStatus", "killed")
    assert "endTime" not in one
    assert "ynthetic" not in (tmp_path / CRATE).read_text()
