"""Workers and readers that die, hang, fail and run out of memory: the culprit is given up, everybody else goes on."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.errors import ResourceError
from holdfast.pool.devices import BATCHES_AHEAD
from holdfast.results.embeddings import Embeddings, read_embeddings
from holdfast.run.provenance import begin_record
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.frames import find_frames, frame_id
from holdfast.spool.job import Receipt

from tests.drills.conftest import RunningPool, Serve, check_equal, proteins
from tests.drills.drill import ASKED
from tests.drills.faults import Fault, Injection, token_marker
from tests.drills.processes import LONG_S, eventually
from tests.workflow.conftest import DEMO, HOLDFAST
from tests.workflow.conftest import fasta as fasta_text

CONTIGS = DEMO / "data" / "bacterium_heldout.fna"
CULPRIT = "MKILLERWWHHWWCCMWHMCYYFF"
NAMES = ("one", "two", "three")
ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"
BATCH_TIMEOUT_S = 30.0  # for a load, too, which a busy machine makes long
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB."
FITTING_TOKENS = 1500
SPARE_BYTES = 120_000_000
LONG_BP = 20_000  # 6,000 tokens, for which DNABERT-S needs 250 MB


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Samples by name: three of proteins, two of them with the culprit, contigs, many proteins, and long DNA."""
    directory = tmp_path_factory.mktemp("samples")
    samples = {name: proteins(14, 30, seed) for seed, name in enumerate(NAMES)}
    samples["one"] |= {"culprit": CULPRIT}
    samples["two"] = {"same": CULPRIT, **samples["two"]}
    contigs = [*read_records(CONTIGS, Alphabet.NUCLEOTIDE)]
    samples["contigs"] = {record.id: record.sequence for record in contigs[:2]}
    samples["many"] = proteins(300, 40, 9)
    bases = np.array(list("ACGT"))[np.random.default_rng(1).integers(0, 4, LONG_BP)]
    samples["dna"] = {"long": "".join(bases), "short": "".join(bases[:500])}
    for name, records in samples.items():
        (directory / name).write_text(fasta_text(records))
    return {name: directory / name for name in samples}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, models: Path, files: dict[str, Path]) -> dict[str, Embeddings]:
    """What an undisturbed pool makes of the samples."""
    pool = RunningPool(tmp_path_factory.mktemp("undisturbed"), models, {}, tokens_per_batch=1024)
    outcomes = pool.embed(*(pool.job(name, path, kind(name)) for name, path in files.items()))
    found = {name: read_embeddings(outcome.embeddings) for name, outcome in outcomes.items()}
    pool.stop()
    return found


def kind(name: str) -> str:
    return name if name in ("contigs", "dna") else "proteins"


def check(outcome: Receipt, expected: Embeddings, given_up: dict[str, str], status: str = "failed") -> None:
    """A sample is done, its rows are those of an undisturbed run, but for those given up, whose records say so."""
    assert (outcome.state, outcome.error) == ("done", "")
    assert outcome.failures == given_up
    assert outcome.counts[status] == len(given_up)
    found = read_embeddings(outcome.embeddings)
    check_equal(found, expected, without=set(given_up))
    suffering = {expected.records.ids[expected.record[expected.ids.index(row)]] for row in given_up}
    assert found.records.status == [status if record in suffering else "ok" for record in found.records.ids]


def check_replacements(pool: RunningPool) -> int:
    """Every death was logged and counted, and led to one replacement; the number of them."""
    deaths = pool.log.read_text().count(" over a batch of ")
    eventually(lambda: pool.restarts() == pool.progress("repeated_batches") == deaths)
    eventually(lambda: pool.log.read_text().count("ready after") == deaths + 1)
    text = pool.log.read_text()
    assert "Traceback" not in text
    assert pool.process.poll() is None
    return deaths


def test_a_sequence_that_no_worker_survives_is_given_up_in_its_samples_alone(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    pool = serve(Fault("embed", "kill", token_marker(models, CULPRIT)), tokens_per_batch=256)
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in NAMES))
    reason = "esm2: the worker died over it on cpu:0, in company and alone"
    check(outcomes["one"], expected["one"], {"culprit": reason})
    check(outcomes["two"], expected["two"], {"same": reason})
    check(outcomes["three"], expected["three"], {})
    assert check_replacements(pool) in (4, 5)  # two over a batch of at most 8, one over each half, down to one


def test_a_frame_over_which_the_device_reports_an_error_is_given_up(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    name, protein = longest_frame(files["contigs"])
    pool = serve(Fault("embed", "raise", token_marker(models, protein), ILLEGAL_ACCESS), tokens_per_batch=256)
    outcomes = pool.embed(pool.job("contigs", files["contigs"], "contigs"), pool.job("three", files["three"]))
    reason = f"esm2: RuntimeError: {ILLEGAL_ACCESS} over it on cpu:0, in company and alone"
    check(outcomes["contigs"], expected["contigs"], {name: reason})
    check(outcomes["three"], expected["three"], {})
    assert check_replacements(pool) >= 2


def longest_frame(path: Path) -> tuple[str, str]:
    """Id and protein of the longest frame of the first contig in a file."""
    (record, *_) = read_records(path, Alphabet.NUCLEOTIDE)
    found = max(find_frames(record.sequence, 500), key=lambda frame: len(frame.protein))
    return frame_id(record.id, found.chunk, found.frame), found.protein


def test_a_worker_that_hangs_is_replaced_and_its_batch_tried_again(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    fault = Fault("embed", "hang", token_marker(models, CULPRIT))
    pool = serve(fault, tokens_per_batch=256, batch_timeout_s=BATCH_TIMEOUT_S)
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in NAMES))
    for name in NAMES:
        check(outcomes[name], expected[name], {})
    assert check_replacements(pool) == 1
    assert "cpu:0: no answer for longer than pool.batch_timeout_s allows: killing the worker" in pool.log.read_text()


def test_a_worker_killed_from_outside_costs_its_batch_a_repetition(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings], tmp_path: Path
) -> None:
    last = [*read_records(files["three"], Alphabet.PROTEIN)][-1]
    injection = Injection(tmp_path / "faults", Fault("embed", "wait", token_marker(models, last.sequence)))
    pool = serve(environment=injection.environment, tokens_per_batch=256)
    waiting = [pool.hand_in(pool.job(name, files[name])) for name in NAMES]
    injection.wait_for()
    (worker,) = pool.processes(with_torch=True)
    worker.kill()
    injection.release()
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


def test_workers_take_batches_as_they_are_free_and_neither_their_number_nor_the_order_changes_a_bit(
    serve: Serve, models: Path, files: dict[str, Path], expected: dict[str, Embeddings], tmp_path: Path
) -> None:
    """One of three is stopped over its first batch: it keeps that and the one behind it, the others do all the rest."""
    budget_tokens, workers = 1024, 3
    (first, *_) = read_records(files["many"], Alphabet.PROTEIN)
    injection = Injection(tmp_path / "faults", Fault("embed", "wait", token_marker(models, first.sequence)))
    settings = {"tokens_per_batch": budget_tokens, "threads": workers, "cpu_workers": workers}
    pool = serve(environment=injection.environment, **settings)
    eventually(lambda: pool.log.read_text().count("ready after") == workers)
    names = ("many", "contigs", *reversed(NAMES))
    waiting = [pool.hand_in(pool.job("many", files["many"]))]
    injection.wait_for()
    waiting += [pool.hand_in(pool.job(name, files[name], kind(name))) for name in names[1:]]

    def rest_is_done() -> bool:
        progress = pool.state.progress
        known = progress.done + sum(job.state != "reading" for job in progress.jobs) == len(names)
        return known and progress.tokens_left <= BATCHES_AHEAD * budget_tokens

    eventually(rest_is_done)
    shares = sorted(device.tokens for device in pool.state.progress.devices)
    assert (len(shares), shares[0]) == (workers, 0)
    assert shares[1] > budget_tokens / 2
    injection.release()
    for name, future in zip(names, waiting, strict=True):
        check(future.result(LONG_S), expected[name], {})
    eventually(lambda: pool.progress("done") == len(names))
    total_tokens = sum(device.tokens for device in pool.state.progress.devices)
    assert total_tokens == pool.progress("tokens") > 4 * workers * budget_tokens


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
        pytest.param(Fault("load", "kill"), "the worker died while loading", marks=pytest.mark.thorough),
        (Fault("load", "distrust"), "cpu:0: self-test of esm2 failed: a sequence alone and in a batch differ by"),
    ],
)
def test_with_no_device_left_pool_and_consumers_end_with_the_reason(
    serve: Serve, files: dict[str, Path], fault: Fault, reason: str
) -> None:
    pool = serve(fault)
    waiting = pool.hand_in(pool.job("one", files["one"]))
    names = [pool.models / model / "model.json" for model in ("esm2", "dnabert_s")]
    plan = pool.directory / "plan.json"
    sample = {"sample": "two", "fasta": str(files["two"]), "kind": "proteins", "label": "", "models": ""}
    config: dict[str, Any] = {
        "chunk_length": 500,
        "genetic_code": 1,
        "precision": "auto",
        "store_dtype": "float32",
        "method": {},
        "classified": False,
    }
    config["models"] = {"esm2": ASKED, "dnabert_s": ASKED}
    consumers = [{"replica": 0, "samples": ["two"]}]
    held = {"consumers": consumers, "models": ["esm2", "dnabert_s"]}
    plan.write_text(json.dumps({"plan": held, "samples": {"two": sample}, "settings": config}))
    begin_record(plan.parent, plan.parent / "results", config, {}, ["two"], {})
    command = [*HOLDFAST, "submit", plan, "--consumer", "0", "--models", *names, "--spool", pool.spool.root]
    command += ["--endpoint", pool.endpoint, "--results", pool.directory / "results"]
    submitted = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=LONG_S)
    assert pool.process.wait(LONG_S) == 1
    assert pool.state.state == "failed"
    assert pool.state.reason.startswith(f"no device is left; cpu:0 failed 3 times in a row, the last: {reason}")
    with pytest.raises(ResourceError) as raised:
        waiting.result(LONG_S)
    for text in (submitted.stderr, str(raised.value)):
        assert pool.state.reason in text
        assert "Traceback" not in text
    assert submitted.returncode == 1
    assert "Traceback" not in pool.log.read_text()
    assert [name.rpartition("-")[0] for name in sorted(pool.spool.waiting())] == ["one", "two"]


def test_a_batch_without_memory_is_halved_and_its_smaller_size_remembered(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    """What CUDA says, not real memory: on a CPU an encoder needs no more for many sequences than for one."""
    pool = serve(Fault("encode", "raise", str(FITTING_TOKENS), OUT_OF_MEMORY), tokens_per_batch=8192)
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in ("many", *NAMES)))
    for name in ("many", *NAMES):
        check(outcomes[name], expected[name], {})
    found = re.findall(r"no memory for (\d+) tokens; esm2 has a budget of (\d+) now", pool.log.read_text())
    failed, budgets = zip(*(map(int, pair) for pair in found), strict=True)
    assert min(failed) > FITTING_TOKENS >= budgets[-1] >= FITTING_TOKENS // 2 - 1
    assert list(budgets) == sorted(budgets, reverse=True)
    assert len(budgets) <= 8  # at most two batches of each size: the one in work and the one behind it
    assert check_replacements(pool) == 0


def test_a_sequence_for_which_memory_really_lacks_is_given_up(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings]
) -> None:
    pool = serve()
    pool.wait_until_ready()
    (worker,) = pool.processes(with_torch=True)
    limit_bytes = worker.memory_info().vms + SPARE_BYTES
    worker.rlimit(psutil.RLIMIT_AS, (limit_bytes, limit_bytes))
    outcomes = pool.embed(*(pool.job(name, files[name], kind(name)) for name in ("one", "dna")))
    (reason,) = outcomes["dna"].failures.values()
    assert re.fullmatch(r"dnabert_s: cpu:0 has no memory for its \d+ tokens, even alone", reason)
    check(outcomes["dna"], expected["dna"], {"long": reason}, "too_long")
    check(outcomes["one"], expected["one"], {})
    assert "cpu:0: no memory for" in pool.log.read_text()
    assert check_replacements(pool) == 0


def test_samples_whose_reader_is_killed_are_read_again(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings], tmp_path: Path
) -> None:
    injection = Injection(tmp_path / "faults", Fault("read", "wait", "two"))
    pool = serve(environment=injection.environment)
    waiting = {name: pool.hand_in(pool.job(name, files[name])) for name in NAMES}
    injection.wait_for()
    pool.wait_until_ready()  # by now the worker, too, is known by its torch
    (reader,) = pool.processes(with_torch=False)
    reader.kill()
    injection.release()
    for name, future in waiting.items():
        check(future.result(LONG_S), expected[name], {})
    text = pool.log.read_text()
    assert text.count("a reader process died; its samples are read again, one at a time") == 1
    assert check_replacements(pool) == 0


@pytest.mark.parametrize("process", ["worker", pytest.param("reader", marks=pytest.mark.thorough)])
def test_a_process_killed_while_it_has_nothing_to_do_is_replaced(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings], process: str
) -> None:
    pool = serve()
    check(pool.embed(pool.job("one", files["one"]))["one"], expected["one"], {})
    (idle,) = pool.processes(with_torch=process == "worker")
    idle.kill()
    idle.wait()
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in ("two", "three")))
    for name in ("two", "three"):
        check(outcomes[name], expected[name], {})
    assert pool.process.poll() is None
    assert "Traceback" not in pool.log.read_text()


@pytest.mark.parametrize("place", ["read", pytest.param("finish", marks=pytest.mark.thorough)])
def test_the_sample_that_kills_a_reader_twice_fails_alone(
    serve: Serve, files: dict[str, Path], expected: dict[str, Embeddings], place: str
) -> None:
    pool = serve(Fault(place, "kill", "two"))
    outcomes = pool.embed(*(pool.job(name, files[name]) for name in NAMES))
    assert outcomes["two"].state == "failed"
    assert outcomes["two"].error == "the process that read or wrote the sample died, twice; out of memory?"
    for name in ("one", "three"):
        check(outcomes[name], expected[name], {})
    assert 2 <= pool.log.read_text().count("a reader process died") <= 3
    assert check_replacements(pool) == 0
