"""The pool for real: ``holdfast serve`` as a process, real models with synthetic weights, real samples."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.errors import ResourceError
from holdfast.models.registry import Output, load_tokenizer, read_prepared
from holdfast.results.embeddings import read_embeddings
from holdfast.run.config import Sample, check_config
from holdfast.run.provenance import begin_record
from holdfast.run.requests import job_settings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.spool.job import Manifest, Request
from holdfast.spool.state import state_path

from tests.drills.faults import Fault, Injection
from tests.pool.conftest import DATA, LONG_S, SCRIPTS, ServedPool, compare, family, gone, job, proteins, submit, texts


def tiny_samples(models: dict[str, Path], directory: Path) -> list[Manifest]:
    """A dozen samples of one or two pieces of real genomes, two of them alike, and one each of the other kinds."""
    pieces = [*read_records(DATA / "phage_train.fna", Alphabet.NUCLEOTIDE)][:10]
    pieces += read_records(DATA / "bacterium_heldout.fna", Alphabet.NUCLEOTIDE)
    jobs = []
    for number, piece in enumerate(pieces[:12]):
        path = directory / f"s{number}.fna"
        path.write_text(f">{piece.id}\n{piece.sequence}\n")
        jobs.append(job(models, f"s{number}", path, "contigs"))
    (directory / "twin.fna").write_bytes((directory / "s0.fna").read_bytes())
    return [
        *jobs,
        job(models, "twin", directory / "twin.fna", "contigs"),
        job(models, "proteins", DATA / "phage_proteins.faa", "proteins"),
        job(models, "dna", DATA / "phage_heldout.fna", "dna"),
    ]


def test_samples_share_batches_and_their_embeddings_equal_the_encoders(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    pool = serve(tokens_per_batch=4096)
    jobs = tiny_samples(models, tmp_path)
    outcomes = submit(pool, *jobs)
    compared = {entry.sample: compare(outcomes[entry.sample], entry, models, encoders) for entry in jobs}
    assert sum(count > 0 for count in compared.values()) > 10
    pool.eventually(lambda: pool.state.progress.done == len(jobs))
    progress = pool.state.progress
    distinct: dict[str, dict[bytes, int]] = {"esm2": {}, "dnabert_s": {}}
    for entry in jobs:
        for model, sequences in texts(entry, models).items():
            for sequence in sequences:
                ids, _ = load_tokenizer(read_prepared(models[model]), models[model])([sequence])
                distinct[model][ids.tobytes()] = len(ids)
    assert progress.sequences == sum(len(known) for known in distinct.values())
    assert progress.tokens == sum(sum(known.values()) for known in distinct.values())
    needed = sum(len(entry.models) for entry in jobs)
    assert progress.batches < needed, "every sample travelled by itself"
    assert (progress.failed, progress.jobs, progress.tokens_left) == (0, [], 0)
    assert list(pool.spool_path.glob("blocks/*/*/*.safetensors")) == []
    twin, first = read_embeddings(outcomes["twin"].embeddings), read_embeddings(outcomes["s0"].embeddings)
    assert np.array_equal(twin.matrices["esm2/6/mean"], first.matrices["esm2/6/mean"])
    pool.process.send_signal(signal.SIGTERM)
    assert pool.ended() == 0
    assert list(pool.spool_path.glob("blocks/*")) == []


def test_a_renewed_worker_goes_on_where_the_last_one_stopped(
    serve: Callable[..., ServedPool], models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    pool = serve(tokens_per_batch=4096, max_tasks_per_worker=1)
    entry = job(models, "p", DATA / "phage_proteins.faa", "proteins")
    dna = job(models, "d", DATA / "phage_heldout.fna", "dna")
    outcomes = submit(pool, entry, dna)
    assert compare(outcomes["p"], entry, models, encoders) > 0
    assert compare(outcomes["d"], dna, models, encoders) > 0
    pool.eventually(lambda: pool.state.progress.done == 2)
    batches = pool.state.progress.batches
    assert batches >= 2
    text = pool.log.read_text()
    assert text.count("renewing the worker after 1 batches") >= batches - 1
    assert text.count("ready after") >= batches


HELD_TORCH = """
import pathlib, sys, time

class HeldTorch:
    def find_spec(self, name, path, target=None):
        if name == "torch.torch_version":  # of torch itself the version is asked for, without importing it
            sys.meta_path.remove(self)
            while not pathlib.Path(__file__).with_name("released").exists():
                time.sleep(0.01)

if "--multiprocessing-fork" in sys.orig_argv:
    sys.meta_path.insert(0, HeldTorch())
"""


def test_a_pool_says_that_it_starts_before_its_models_are_loaded(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """Snakemake gives up on a service that is silent for 5 s, and torch may take longer than that to import.

    Device auto on a machine without a visible GPU: devices are counted without torch, so it is imported once.
    """
    (tmp_path / "sitecustomize.py").write_text(HELD_TORCH)
    pool = serve(device="auto", environment={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)})
    state = state_path(pool.spool_path, pool.state.identity.pool)
    pool.eventually(state.exists)
    entry = job(models, "p", DATA / "phage_proteins.faa", "proteins")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(submit, pool, entry)
        pool.eventually(lambda: [each.state for each in pool.state.progress.jobs] == ["waiting"])
        assert pool.state.state == "starting"
        (tmp_path / "released").touch()
        outcome = waiting.result()["p"]
    assert compare(outcome, entry, models, encoders) > 0
    assert outcome.pool["devices"] == "CPU, 1 threads"
    assert pool.log.read_text().count("working on the CPU") == 1


def test_a_broken_sample_fails_with_its_reason_and_the_others_go_on(
    pool: ServedPool, tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    (tmp_path / "broken.fna").write_text(">a\nACGT\n>a\nACGT\n")
    (tmp_path / "binary.fna").write_bytes(os.urandom(500))
    (tmp_path / "empty.fna").touch()
    good = job(models, "good", DATA / "phage_heldout.fna", "contigs")
    outcomes = submit(
        pool,
        job(models, "broken", tmp_path / "broken.fna", "contigs"),
        job(models, "binary", tmp_path / "binary.fna", "dna"),
        job(models, "missing", tmp_path / "missing.fna", "contigs"),
        job(models, "directory", tmp_path, "proteins"),
        job(models, "empty", tmp_path / "empty.fna", "contigs"),
        good,
    )
    compare(outcomes["good"], good, models, encoders)
    assert (outcomes["empty"].state, outcomes["empty"].counts["rows"]) == ("done", 0)
    assert "broken.fna, line 3, record 'a'" in outcomes["broken"].error
    assert "binary.fna" in outcomes["binary"].error
    assert "missing.fna: cannot be read" in outcomes["missing"].error
    assert f"{tmp_path}: is a directory" in outcomes["directory"].error
    failed = {name for name, outcome in outcomes.items() if outcome.state == "failed"}
    assert failed == {"broken", "binary", "missing", "directory"}
    assert pool.process.poll() is None
    assert "reader process died" not in pool.log.read_text()


def test_only_the_worker_has_torch(pool: ServedPool, models: dict[str, Path]) -> None:
    outcome = submit(pool, job(models, "torch", DATA / "phage_heldout.fna", "dna"))["torch"]
    assert outcome.state == "done"
    processes = [pool.process.pid, *(process.pid for process in family(pool.process.pid))]
    assert len(processes) >= 3
    with_torch = [pid for pid in processes if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    assert pool.process.pid not in with_torch
    assert len(with_torch) == 1


def test_a_job_that_no_pool_holds_the_weights_for_is_left_for_others_and_its_consumer_says_so(
    pool: ServedPool, tmp_path: Path, models: dict[str, Path]
) -> None:
    path = DATA / "phage_proteins.faa"
    foreign_weights = {"esm2": Request("c" * 64, [Output(6, "mean")], "whole", 0)}
    other = dataclasses.replace(job(models, "weights", path, "proteins"), models=foreign_weights)
    half = dataclasses.replace(job(models, "precision", path, "proteins"), precision="fp16")
    submit(pool, job(models, "fitting", path, "proteins"))
    for foreign, needs in ((other, "needs esm2 in auto"), (half, "needs esm2 in fp16")):
        with pytest.raises(ResourceError, match=needs) as raised:
            submit(pool, foreign)
        assert "1 pool(s) on" in str(raised.value)
        assert pool.spool.receipt(foreign.job) is None
        assert f"{foreign.job}.json" in pool.spool.waiting()


def test_a_model_that_the_pool_does_not_hold_is_named(
    serve: Callable[..., ServedPool], models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    one = {"esm2": models["esm2"]}
    pool = serve(models=one)
    entry = job(models, "p", DATA / "phage_proteins.faa", "proteins")
    assert compare(submit(pool, entry)["p"], entry, models, encoders) > 0
    with pytest.raises(ResourceError, match="needs esm2 and dnabert_s in auto"):
        submit(pool, job(models, "c", DATA / "phage_heldout.fna", "contigs"))


def test_what_is_no_manifest_does_not_stop_the_pool(
    pool: ServedPool, tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    incoming = pool.spool.root / "incoming"  # made here, if the pool has announced itself and not yet opened its spool
    (incoming / "x.json").write_text("{[")
    (incoming / "y.json").write_text(job(models, "y", tmp_path, "dna").dump().replace('"dna"', "true"))
    with open(os.fsencode(incoming) + b"/z\xff.json", "w") as file:
        file.write("{}")
    odd = job(models, "odd", Path("/data/\udcff.fna"), "dna")
    entry = job(models, "p2", DATA / "phage_proteins.faa", "proteins")
    outcomes = submit(pool, entry, odd)
    assert compare(outcomes["p2"], entry, models, encoders) > 0
    assert outcomes["odd"].state == "failed"
    assert len(list((pool.spool_path / "failed").glob("[xyz]*"))) == 3
    assert pool.process.poll() is None


def test_a_job_handed_in_twice_at_once_is_done_all_the_same(
    serve: Callable[..., ServedPool], models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """Two consumers can both find that nobody has claimed a job, and hand it in; the second comes after the claim."""
    pool = serve()
    entry = job(models, "p", DATA / "phage_proteins.faa", "proteins")
    name = f"{entry.job}.json"
    pool.spool.submit(entry)
    pool.eventually(lambda: name in pool.claimed())
    staged = pool.spool_path / "again.json"
    staged.write_text(entry.dump())
    staged.rename(pool.spool_path / "incoming" / name)
    pool.eventually(lambda: pool.spool.receipt(entry.job) is not None and not pool.claimed())
    pool.eventually(lambda: pool.spool.waiting() == [])
    time.sleep(1)
    assert pool.process.poll() is None, pool.log.read_text()
    outcome = pool.spool.receipt(entry.job)
    assert outcome is not None
    assert compare(outcome, entry, models, encoders) > 0


def run_consumer(pool: ServedPool, models: dict[str, Path]) -> "subprocess.CompletedProcess[str]":
    """Submit a sample with the script that the rule runs."""
    names = [directory / "model.json" for directory in models.values()]
    plan = pool.spool_path.parent / "plan.json"
    sample = Sample("s", str(DATA / "phage_heldout.fna"), "contigs", label="", models="")
    config = check_config({"samples": [], "models": {name: {"weights": str(models[name])} for name in models}})
    planned = {"consumers": [{"replica": 0, "samples": ["s"]}], "models": list(models)}
    content = {
        "plan": planned,
        "samples": {"s": dataclasses.asdict(sample)},
        "settings": job_settings(config, [sample]),
    }
    plan.write_text(json.dumps(content))
    begin_record(plan.parent, plan.parent / "results", config, {}, ["s"], {})
    arguments: list[Any] = [plan, "--consumer", "0", "--models", *names, "--spool", pool.spool_path]
    arguments += ["--endpoint", pool.endpoint, "--results", pool.spool_path.parent / "results"]
    command = [sys.executable, SCRIPTS / "entry.py", "submit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)


def test_wrong_weights_end_the_pool_and_its_consumers_with_the_reason(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path]
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "cut").mkdir()
    for path in models["esm2"].iterdir():
        (tmp_path / "cut" / path.name).write_bytes(path.read_bytes())
    os.truncate(tmp_path / "cut/model.safetensors", 1000)
    reasons = {"nothing": "not a prepared model, model.json is missing", "cut": "model.safetensors: not readable"}
    pools = {name: serve(f"pool-{name}", models={**models, "esm2": tmp_path / name}) for name in reasons}
    for name, reason in reasons.items():
        pool = pools[name]
        assert pool.ended() == 2
        assert pool.state.state == "failed"
        assert str(tmp_path / name) in pool.state.reason
        assert reason in pool.state.reason
        assert "Traceback" not in pool.log.read_text()
        told = run_consumer(pool, models)
        assert told.returncode == 1
        assert pool.state.reason in told.stderr
        assert "Traceback" not in told.stderr
        assert not (pool.spool_path.parent / "s.json").exists()


def test_a_pool_that_dies_without_a_word_ends_its_consumers(
    serve: Callable[..., ServedPool], models: dict[str, Path]
) -> None:
    pool = serve()
    pool.process.kill()
    pool.ended()
    told = run_consumer(pool, models)
    assert told.returncode == 1
    assert f"the pool (process {pool.process.pid} on " in told.stderr
    assert "died without a word" in told.stderr


@pytest.mark.parametrize("asked", [{"device": "auto", "gpu": 1}, {"device": "cuda"}, {"device": "cuda", "gpu": 2}])
def test_a_gpu_that_is_not_there_ends_the_pool_at_once(
    serve: Callable[..., ServedPool], models: dict[str, Path], asked: dict[str, Any]
) -> None:
    pool = serve(environment={"CUDA_VISIBLE_DEVICES": ""}, **asked)
    assert pool.ended() == 1
    reason = pool.state.reason
    assert reason.startswith(f"{asked.get('gpu', 1)} GPU(s) asked for, but torch sees 0")
    assert "a pool by hand by gpu: N in its settings" in reason
    assert "torch sees 0 CUDA device(s) with CUDA_VISIBLE_DEVICES=" in reason
    assert pool.state.state == "failed"
    assert reason in pool.log.read_text()
    assert "on cpu" not in pool.log.read_text()
    with pytest.raises(ResourceError, match="torch sees 0 CUDA device"):
        submit(pool, job(models, "s", DATA / "phage_heldout.fna", "contigs"))


STAND_IN_DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
int cuDeviceGet(int *device, int number) { *device = 10 + number; return 0; }
int cuDeviceGetUuid_v2(char *bytes, int device) { for (int i = 0; i < 16; i++) bytes[i] = device; return 0; }
"""


@pytest.mark.parametrize(
    ("driver", "built", "counted"),
    [
        ({"INIT": 0, "VERSION": 13020}, "13.0", 3),
        ({"INIT": 0, "VERSION": 13000}, "13.2", 3),  # the same major version: compatible
        ({"INIT": 0, "VERSION": 12090}, "13.0", 0),
        ({"INIT": 100, "VERSION": 13020}, "13.0", 0),  # CUDA_ERROR_NO_DEVICE
        ({"INIT": 0, "VERSION": 13020}, None, 0),
        (None, "13.0", 0),
    ],
)
def test_devices_are_listed_by_the_driver_without_torch(
    tmp_path: Path, driver: dict[str, int] | None, built: str | None, counted: int
) -> None:
    """With a library that stands in for NVIDIA's driver, and the version file of a torch that was built for CUDA."""
    if driver is not None:
        macros = [f"-D{name}={value}" for name, value in driver.items()]
        command = ["cc", "-shared", "-fPIC", *macros, "-xc", "-", "-o", str(tmp_path / "libcuda.so.1")]
        subprocess.run(command, input=STAND_IN_DRIVER, text=True, check=True)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch/version.py").write_text(f"cuda = {built!r}\n")
    ended = subprocess.run(
        [sys.executable, "-c", "from holdfast.pool import hardware; print(*hardware.list_devices())"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{SCRIPTS}", "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == [
        f"{digits * 4}-{digits * 2}-{digits * 2}-{digits * 2}-{digits * 6}" for digits in ("0a", "0b", "0c")[:counted]
    ]
    assert ended.stderr.count("the driver knows CUDA 12 only, torch was built for 13.0") == (
        driver is not None and driver["VERSION"] < 13000
    )


def test_sigterm_ends_the_pool_and_gives_its_claims_back(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path]
) -> None:
    pool = serve(tokens_per_batch=1024)
    jobs = [
        job(models, f"s{seed}", proteins(tmp_path / f"s{seed}.faa", 150, 150, seed), "proteins") for seed in range(3)
    ]
    for entry in jobs:
        pool.spool.submit(entry)
    pool.eventually(lambda: list(pool.spool_path.glob("blocks/*/*/*.safetensors")))
    assert pool.claimed() != []
    children = family(pool.process.pid)
    assert len(children) >= 2
    pool.process.send_signal(signal.SIGTERM)
    assert pool.ended() == 0
    gone(children)
    unfinished = [f"{entry.job}.json" for entry in jobs if pool.spool.receipt(entry.job) is None]
    assert unfinished != []
    assert sorted(pool.spool.waiting()) == sorted(unfinished)
    assert pool.claimed() == []
    assert list((pool.spool_path / "work").iterdir()) == []
    assert (pool.state.state, pool.state.reason) == ("ended", "SIGTERM")
    assert list(pool.spool_path.glob("blocks/*/*/*.safetensors")), "finished vectors are kept for the next run"


def test_what_goes_while_it_is_copied_is_computed(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """As when two lines of a sheet have exchanged their files: who hands in one removes what the other is copied of."""
    pool, path = serve(), proteins(tmp_path / "s.faa", 5, 30)
    first = submit(pool, job(models, "first", path, "proteins"))["first"]
    Path(first.embeddings).with_name("records.tsv").unlink()  # the last that is copied
    again = job(models, "again", path, "proteins")
    outcome = submit(pool, again)["again"]
    assert compare(outcome, again, models, encoders) > 0
    assert outcome.counts["computed_tokens"] > 0


def test_after_a_kill_the_next_pool_finishes_with_what_was_there(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    slow = Injection(tmp_path / "faults", Fault("embed", "slow", words="1"))
    first = serve("first", tokens_per_batch=512, environment=slow.environment)
    entry = job(models, "s", proteins(tmp_path / "s.faa", 160, 100), "proteins")
    first.spool.submit(entry)
    first.eventually(lambda: len(list(first.spool_path.glob("blocks/*/*/*.safetensors"))) > 2)
    children = family(first.process.pid)
    assert len(children) >= 2
    first.process.kill()
    first.ended()
    gone(children)
    assert first.claimed() == [f"{entry.job}.json"]
    second = serve("second", spool=first.spool_path)
    outcome = submit(second, entry)["s"]
    assert compare(outcome, entry, models, encoders) > 0
    second.eventually(lambda: second.state.progress.done == 1)
    computed = second.state.progress.sequences
    assert 0 < computed <= 160 - 3 * 5, "what the first pool had computed was computed again"
    assert "took over 1 jobs" in second.log.read_text()


def test_a_pool_ends_when_its_endpoint_goes_or_nobody_wants_anything(serve: Callable[..., ServedPool]) -> None:
    left, idle = serve("left"), serve("idle", idle_timeout_s=1.0)
    left.endpoint.unlink()
    assert (left.ended(), idle.ended()) == (0, 0)
    assert "the endpoint file is gone" in left.log.read_text()
    assert (idle.state.state, idle.state.reason) == ("ended", "idle for 1 s")


def test_a_wrong_settings_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text("models: {esm2: /m}\nthreats: 2\n")
    arguments: list[Any] = [
        "--config",
        tmp_path / "pool.yaml",
        "--spool",
        tmp_path / "s",
        "--endpoint",
        tmp_path / "e.json",
    ]
    command = [sys.executable, SCRIPTS / "entry.py", "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert ended.returncode == 2
    assert "pool.yaml: unknown key 'threats'; did you mean 'threads'?" in ended.stderr
    assert "Traceback" not in ended.stderr


WORKER_PROBE = """
import json, os, sys
from pathlib import Path
from holdfast.pool import worker
from holdfast.processes import beside

class Witness:
    seen = []

    def find_spec(self, name, path, target=None):
        if name == "torch":
            self.seen.append(os.environ.get("PYTORCH_ALLOC_CONF"))

sys.meta_path.insert(0, Witness())

def report():
    import torch
    return [Witness.seen, os.environ["PYTORCH_ALLOC_CONF"], torch.get_num_threads()]

if __name__ == "__main__":
    models = {model: Path(directory) for model, directory in json.loads(sys.argv[1]).items()}
    settings = worker.WorkerSettings("cpu", models, "fp32", 2, "max_split_size_mb:64", 0.5, 3)
    with beside(1) as executor:
        ready = executor.submit(worker.start, settings).result()
        print(json.dumps([ready.device_name, *executor.submit(report).result()]))
    assert "torch" not in sys.modules
"""


def test_a_worker_sets_the_allocator_before_torch_is_there(tmp_path: Path, models: dict[str, Path]) -> None:
    (tmp_path / "probe.py").write_text(WORKER_PROBE)
    environment = {key: value for key, value in os.environ.items() if key != "PYTORCH_ALLOC_CONF"}
    ended = subprocess.run(
        [sys.executable, tmp_path / "probe.py", json.dumps({model: str(path) for model, path in models.items()})],
        env={**environment, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=LONG_S,
    )
    assert ended.returncode == 0
    setting = "max_split_size_mb:64"
    assert json.loads(ended.stdout) == ["CPU, 2 threads", [setting], setting, 2]
