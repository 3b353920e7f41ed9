"""Fifty samples in one run, one of each kind of bad among them: the bad ones are named, the good ones finished."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from holdfast.results.embeddings import read_embeddings

from tests.drills.conftest import Serve, check_equal, proteins, results_of
from tests.drills.faults import Fault, Injection, token_marker
from tests.workflow.conftest import NewProject, Project, fasta, jobs

SAMPLES = 50
CULPRIT = "MKILLERWWHHWWCCMWHMCYYFF"
LONG_BP = 10_000_000
READER_BYTES = 500_000_000
MESSAGES = {
    "truncated": "the compressed file is damaged or cut short",
    "binary": "not FASTA or FASTQ",
    "duplicates": "line 3, record 'p': the id is that of line 1 too; rename one of the records",
    "archive": "is a zip archive or an Excel workbook; unpack it",
    "vanished": "cannot be read: No such file or directory",
}
GIVEN_UP = "esm2: the worker died over it on cpu:0, in company and alone"


def long_record() -> bytes:
    """A contig of 10 Mb in one line."""
    bases = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(5).integers(0, 4, LONG_BP)]
    return b">contig\n" + bases.tobytes() + b"\n"


def write_samples(some: Project) -> list[str]:
    """Write fifty samples, the bad ones scattered among good ones; the names of the good ones."""
    zipped = gzip.compress(fasta(proteins(200, 60, 7)).encode(), mtime=0)
    odd: dict[str, bytes] = {
        "truncated": zipped[: len(zipped) // 2],
        "binary": np.random.default_rng(6).bytes(4000),
        "duplicates": fasta({"p": "MKV"}).encode() * 2,
        "archive": b"PK\3\4" + bytes(100),
        "empty": b"",
        "long": long_record(),
        "killer": fasta({**proteins(3, 30, 8), "culprit": CULPRIT}).encode(),
        "vanished": fasta(proteins(2, 30, 9)).encode(),
    }
    for name, content in odd.items():
        some.write(f"data/{name}", content)
    good = [f"good{number}" for number in range(SAMPLES - len(odd))]
    for seed, name in enumerate(good, 10):
        some.write(f"data/{name}", fasta(proteins(3, 30, seed)))
    names = [*good]
    for place, name in enumerate(odd):
        names.insert(5 * place + 2, name)
    some.write_sheet(*((name, f"data/{name}", "contigs" if name == "long" else "proteins") for name in names))
    return good


def test_the_bad_ones_of_fifty_samples_harm_nobody_and_run_again_when_repaired(
    project: NewProject, serve: Serve, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = project()
    some.configure(store_dtype="float32", pool={"device": "cpu", "tokens_per_batch": 1024, "threads": 1})
    good = write_samples(some)
    undisturbed = serve()
    outcomes = undisturbed.embed(*(undisturbed.job(name, some.path(f"data/{name}")) for name in [*good, "killer"]))
    expected = {name: read_embeddings(outcome.embeddings) for name, outcome in outcomes.items()}
    undisturbed.stop()
    faults = (
        Fault("embed", "kill", token_marker(models, CULPRIT)),
        Fault("read", "delete", "vanished"),
        Fault("read", "note", "long", after=True),
    )
    injection = Injection(tmp_path / "faults", *faults)
    with monkeypatch.context() as patch:
        for name, value in injection.environment.items():
            patch.setenv(name, value)
        run = some.run("--keep-going")

    assert run.returncode == 1
    assert "Traceback" not in run.text
    finished = [*good, "empty", "long", "killer"]
    everything = [*finished, *MESSAGES]
    collected = [f"collect {name}" for name in finished]
    embedded = [f"embed {name}" for name in everything]
    assert run.jobs == sorted(["pool", *embedded, *collected, "list_failures", "summarize", "draw"])
    results = results_of(some)
    assert sorted(results) == sorted(finished)
    for name in good:
        check_equal(results[name], expected[name])
    check_equal(results["killer"], expected["killer"], without={"culprit"})
    killer = results["killer"].records
    assert dict(zip(killer.ids, killer.status, strict=True)) == {
        "p0": "ok",
        "p1": "ok",
        "p2": "ok",
        "culprit": "failed",
    }
    assert (results["empty"].ids, results["empty"].records.ids) == ([], [])
    assert results["long"].records.length.tolist() == [LONG_BP]
    assert results["long"].records.status == ["ok"]
    assert len(results["long"].ids) > 10
    ((peak_bytes, _),) = injection.notes()
    assert peak_bytes < READER_BYTES

    lines = run.text.splitlines()
    (error,) = [line for line in lines if line.startswith("holdfast: error: ")]
    assert f"{len(MESSAGES)} samples have failed: " in error
    end = lines[next(number for number, line in enumerate(lines) if line.startswith("Failed (")) :]
    assert len(end) >= len(MESSAGES) + 2
    for name, message in MESSAGES.items():
        (line,) = [line for line in end if line.startswith(f"  {name}: ")]
        assert f"{some.path('data') / name}" in line
        assert message in line
        assert name in error
    assert f"  killer culprit: {GIVEN_UP}" in end
    failures = some.table("failures.tsv")
    rows = list(zip(failures["sample"], failures["row"], strict=True))
    assert sorted(rows) == sorted([*((name, "") for name in MESSAGES), ("killer", "culprit")])
    assert some.processes_left() == []

    for name in [*MESSAGES, "killer"]:
        some.write(f"data/{name}", some.path(f"data/{good[0]}").read_bytes())
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs(*MESSAGES, "killer")
    assert some.table("failures.tsv").empty
    results = results_of(some)
    for name in [*MESSAGES, "killer"]:
        check_equal(results[name], expected[good[0]])
