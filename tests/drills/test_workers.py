"""Workers and readers that die, hang, fail and run out of memory: the culprit is given up, everybody else goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from holdfast import embeddings, fasta, frames
from holdfast.embeddings import Embeddings
from holdfast.errors import ResourceError
from holdfast.fasta import Alphabet
from holdfast.receipt import Receipt

from tests.drills.conftest import (
    LONG_S,
    ROOT,
    SCRIPTS,
    Fault,
    Injection,
    RunningPool,
    Serve,
    check_equal,
    eventually,
    proteins,
    token_marker,
)
from tests.workflow.conftest import fasta as fasta_text

CONTIGS = ROOT / "demo" / "data" / "bacterium_heldout.fna"
CULPRIT = "MKILLERWWHHWWCCMWHMCYYFF"
NAMES = ("one", "two", "three")
ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"
BATCH_TIMEOUT_S = 12.0
LONG_AA = 1000
SPARE_BYTES = 60_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Samples by name: three of proteins, the first two with the culprit, and two pieces of the demo's genomes."""
    directory = tmp_path_factory.mktemp("samples")
    samples = {name: proteins(14, 30, seed) for seed, name in enumerate(NAMES)}
    samples["one"] |= {"culprit": CULPRIT}
    samples["two"] = {"same": CULPRIT, **samples["two"]}
    contigs = [*fasta.read(CONTIGS, Alphabet.NUCLEOTIDE)]
    samples["contigs"] = {record.id: record.sequence for record in contigs[:2]}
    samples["long"] = proteins(8, LONG_AA, 9)
    for name, records in samples.items():
        (directory / name).write_text(fasta_text(records))
    return {name: directory / name for name in samples}


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, models: Path, files: dict[str, Path]
) -> dict[str, Embeddings]:
    """What an undisturbed pool makes of the samples."""
    pool = RunningPool(tmp_path_factory.mktemp("undisturbed"), models, {}, tokens_per_batch=1024)
    outcomes = pool.embed(*(pool.job(name, path, kind(name)) for name, path in files.items()))
    found = {name: embeddings.read(outcome.embeddings) for name, outcome in outcomes.items()}
    pool.stop()
    return found


def kind(name: str) -> str:
    return "contigs" if name == "contigs" else "proteins"


def check(outcome: Receipt, expected: Embeddings, given_up: dict[str, str]) -> None:
    """A sample is done, its rows are those of an undisturbed run, but for those given up, whose records have failed."""
    assert (outcome.state, outcome.error) == ("done", "")
    assert outcome.failures == given_up
    assert outcome.counts["failed"] == len(given_up)
    found = embeddings.read(outcome.embeddings)
    check_equal(found, expected, without=set(given_up))
    suffering = {expected.records.ids[expected.record[expected.ids.index(row)]] for row in given_up}
    assert found.records.status == ["failed" if record in suffering else "ok" for record in found.records.ids]


def check_replacements(pool: RunningPool) -> int:
    """Every death was logged and counted, and led to one replacement; the number of them."""
    text = pool.log.read_text()
    deaths = text.count(" over a batch of ")
    eventually(lambda: pool.progress("restarts") == pool.progress("repeated_batches") == deaths)
    assert text.count("ready after") == deaths + 1
    assert "Traceback" not in text
    assert pool.process.poll() is None
    return deaths


@pytest.mark.parametrize("deed", ["kill", "raise"])
def test_a_sequence_that_no_worker_survives_is_given_up_in_its_samples_alone(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings], deed: str
) -> None:
    pool = serve(Fault("embed", deed, token_marker(models, CULPRIT), ILLEGAL_ACCESS), tokens_per_batch=256)
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in NAMES))
    reason = "the worker died" if deed == "kill" else f"RuntimeError: {ILLEGAL_ACCESS}"
    reason = f"esm2: {reason} over it on cpu:0, in company and alone"
    check(outcomes["one"], expected["one"], {"culprit": reason})
    check(outcomes["two"], expected["two"], {"same": reason})
    check(outcomes["three"], expected["three"], {})
    assert check_replacements(pool) in (4, 5)  # two over a batch of at most 8, one over each half, down to one


def test_a_sequence_over_which_workers_hang_is_given_up(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    (record, *_) = fasta.read(files["contigs"], Alphabet.NUCLEOTIDE)
    culprit = max(frames.find(record.sequence, 500), key=lambda frame: len(frame.protein))
    settings = {"tokens_per_batch": 256, "batch_timeout_s": BATCH_TIMEOUT_S}
    pool = serve(Fault("embed", "hang", token_marker(models, culprit.protein)), **settings)
    outcomes = pool.embed(pool.job("contigs", files["contigs"], "contigs"), pool.job("three", files["three"]))
    row = frames.frame_id(record.id, culprit.chunk, culprit.frame)
    check(outcomes["contigs"], expected["contigs"], {row: "esm2: the worker died over it on cpu:0, in company and alone"})
    check(outcomes["three"], expected["three"], {})
    assert check_replacements(pool) == pool.log.read_text().count("no answer for longer than pool.batch_timeout_s allows")


def test_a_worker_killed_from_outside_costs_its_batch_a_repetition(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    pool = serve(Fault("embed", "slow", words="0.3"), tokens_per_batch=256)
    pool.wait_until_ready()
    waiting = [pool.hand_in(pool.job(name, files[name])) for name in NAMES]
    eventually(lambda: pool.progress("batches"))
    (worker,) = pool.processes(with_torch=True)
    worker.kill()
    for name, future in zip(NAMES, waiting, strict=True):
        check(future.result(LONG_S), expected[name], {})
    assert check_replacements(pool) == 1


def test_of_two_workers_the_other_one_tries_what_killed_the_first(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    fault = Fault("embed", "kill", token_marker(models, CULPRIT))
    pool = serve(fault, tokens_per_batch=256, threads=2, cpu_workers=2)
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in NAMES))
    for name, row in (("one", "culprit"), ("two", "same")):
        (reason,) = outcomes[name].failures.values()
        assert reason.startswith("esm2: the worker died over it on cpu:")
        check(outcomes[name], expected[name], {row: reason})
    check(outcomes["three"], expected["three"], {})
    deaths = [line for line in pool.log.read_text().splitlines() if " over a batch of " in line]
    devices = [line.split(" ERROR ")[1].split(": ")[0] for line in deaths]
    assert {devices[0], devices[1]} == {"cpu:0", "cpu:1"}
    assert "retired" not in pool.log.read_text()


def test_a_device_that_fails_three_times_is_retired_and_the_other_one_does_the_work(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    pool = serve(Fault("load", "kill", "cpu:0"), tokens_per_batch=256, threads=2, cpu_workers=2)
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in NAMES))
    for name in NAMES:
        check(outcomes[name], expected[name], {})
    eventually(lambda: "retired" in pool.log.read_text())
    text = pool.log.read_text()
    assert "cpu:0: retired after 3 failures in a row, the last: the worker died while loading" in text
    assert text.count("ready after") == 1
    assert pool.process.poll() is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("load", "kill"), "the worker died while loading"),
        (Fault("load", "distrust"), "cpu:0: self-test of esm2 failed: a sequence alone and in a batch differ by"),
    ],
)
def test_with_no_device_left_pool_and_consumers_end_with_the_reason(
    serve: Serve, files: dict[str, Path], fault: Fault, reason: str
) -> None:
    pool = serve(fault)
    waiting = pool.hand_in(pool.job("one", files["one"]))
    names = [pool.models / model / "model.json" for model in ("esm2", "dnabert_s")]
    arguments = [SCRIPTS / "submit_job.py", files["two"], "--sample", "two", "--kind", "proteins", "--models", *names]
    arguments += ["--endpoint", pool.endpoint, "--receipt", pool.directory / "two.json"]
    told = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=LONG_S)
    assert pool.process.wait(LONG_S) == 1
    assert pool.state.state == "failed"
    assert pool.state.reason.startswith(f"no device is left; cpu:0 failed 3 times in a row, the last: {reason}")
    with pytest.raises(ResourceError) as raised:
        waiting.result(LONG_S)
    for text in (told.stderr, str(raised.value)):
        assert pool.state.reason in text
        assert "Traceback" not in text
    assert told.returncode == 1
    assert "Traceback" not in pool.log.read_text()
    assert sorted(pool.spool.waiting()) == sorted(f"{pool.job(name, files[name]).job}.yaml" for name in ("one", "two"))


def limit_memory(pool: RunningPool, spare_bytes: int) -> None:
    """Let the worker have no more than this beyond what it has now, as the kernel would."""
    (worker,) = pool.processes(with_torch=True)
    bytes_now = worker.memory_info().vms
    worker.rlimit(psutil.RLIMIT_AS, (bytes_now + spare_bytes, bytes_now + spare_bytes))


def test_without_memory_for_a_batch_smaller_ones_give_the_same(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    pool = serve(tokens_per_batch=16384)
    pool.wait_until_ready()
    limit_memory(pool, SPARE_BYTES)
    outcomes = pool.embed(pool.job("long", files["long"]), pool.job("one", files["one"]))
    check(outcomes["long"], expected["long"], {})
    check(outcomes["one"], expected["one"], {})
    text = pool.log.read_text()
    assert "cpu:0: no memory for" in text
    assert "esm2 has a budget of" in text
    assert "over a batch" not in text
    assert pool.progress("restarts") == 0
