"""What tests of whole pools need: ``holdfast serve`` as a process, jobs for it, and what should come of them."""

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from holdfast.models.registry import load_tokenizer, open_model, read_prepared
from holdfast.pool.settings import pool_settings
from holdfast.results.embeddings import Embeddings, read_embeddings
from holdfast.run.client import submit_jobs
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.frames import find_frames
from holdfast.spool.job import Manifest, Receipt, make_manifest, make_request
from holdfast.spool.spool import Spool
from holdfast.spool.state import PoolState, read_state, state_path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow/scripts"
DATA = ROOT / "demo/data"
LONG_S = 120  # far more than anything here takes on a busy machine
AMINO_ACIDS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


class ServedPool:
    """A pool in a process of its own, with a spool and an endpoint."""

    def __init__(self, directory: Path, models: dict[str, Path], **changed: Any) -> None:
        """Start it; ``changed`` are settings, ``environment`` variables of the process, ``entry`` the program."""
        directory.mkdir(exist_ok=True)
        environment = changed.pop("environment", {})
        entry = changed.pop("entry", SCRIPTS / "entry.py")
        self.spool_path = changed.pop("spool", directory / "spool")
        self.endpoint = directory / "endpoint.json"
        self.log = directory / "pool.log"
        settings = {
            "device": "cpu",
            "threads": 1,
            **changed,
            "models": {name: str(path) for name, path in models.items()},
        }
        pool_settings(settings, "a test").write(directory / "pool.yaml")
        arguments = ["--config", directory / "pool.yaml", "--spool", self.spool_path, "--endpoint", self.endpoint]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, entry, "serve", *arguments],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.eventually(self.endpoint.exists)
        announced = read_state(self.endpoint)
        assert announced is not None
        self.announced = announced

    def eventually(self, condition: Callable[[], object]) -> None:
        """Wait for what a living pool does."""
        until = time.monotonic() + LONG_S
        while not condition():
            assert self.process.poll() is None or condition(), self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    @property
    def state(self) -> PoolState:
        """What it says of itself: in the spool, until then what stood in the endpoint file."""
        return read_state(state_path(self.spool_path, self.announced.identity.pool)) or self.announced

    @property
    def spool(self) -> Spool:
        """Its spool."""
        return Spool(self.spool_path)

    def claimed(self) -> list[str]:
        """Names of the manifests in work."""
        return [path.name for path in self.spool_path.glob("claimed/*/*.json")]

    def ended(self) -> int:
        """Its exit code."""
        return self.process.wait(LONG_S)

    def stop(self) -> None:
        """End it as Snakemake does, and see that nothing of it is left."""
        children = family(self.process.pid)
        self.endpoint.unlink(missing_ok=True)
        try:
            self.process.wait(LONG_S)
        finally:
            self.process.kill()
        gone(children)


def family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, LONG_S)
    assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def serve(tmp_path: Path, models: dict[str, Path]) -> Iterator[Callable[..., ServedPool]]:
    """Start pools that are stopped at the end of the test."""
    pools: list[ServedPool] = []

    def start(name: str = "pool", **changed: Any) -> ServedPool:
        pools.append(ServedPool(tmp_path / name, changed.pop("models", models), **changed))
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Iterator[ServedPool]:
    """One pool for the tests that need nothing special of it."""
    shared = ServedPool(tmp_path_factory.mktemp("pool"), models)
    yield shared
    shared.stop()


@pytest.fixture(scope="module")
def encoders(models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The oracle: both models in this process, on one thread, so that it does not contend with the pools."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {model: open_model(directory, "cpu", "fp32") for model, directory in models.items()}
    torch.set_num_threads(threads)


def job(
    models: dict[str, Path], sample: str, path: Path, kind: str, dtype: str = "float32", **options: Any
) -> Manifest:
    """A job for the models that embed this kind; ``options`` for every model."""
    asked = {"layers": ["last"], "pooling": ["mean"], "long": None, "max_length": None} | options
    known = {model: read_prepared(directory) for model, directory in models.items()}
    requests = {model: make_request(model, found, asked) for model, found in known.items() if found.fits(kind)}
    return make_manifest(sample, kind, str(path), 500, 1, requests, "auto", dtype)


def submit(pool: ServedPool, *jobs: Manifest) -> dict[str, Receipt]:
    """Hand jobs in at once, each from a consumer of its own, and wait for their receipts."""
    outputs = pool.spool_path.parent
    with ThreadPoolExecutor(len(jobs)) as threads:
        outcomes = threads.map(
            lambda job: submit_jobs([job], pool.spool, pool.endpoint, [outputs / f"{job.job}.json"]), jobs
        )
        return {outcome.sample: outcome for (outcome,) in outcomes}


def texts(entry: Manifest, models: dict[str, Path]) -> dict[str, list[str]]:
    """What each model is to embed of a sample, row by row."""
    is_protein = {model: read_prepared(models[model]).is_protein for model in entry.models}
    alphabet = Alphabet.PROTEIN if entry.kind == "proteins" else Alphabet.NUCLEOTIDE
    records = [record.sequence for record in read_records(entry.fasta, alphabet)]
    if entry.kind != "contigs":
        embedded = [text.rstrip("*") for text in records] if entry.kind == "proteins" else records
        return {model: [text for text in embedded if text] for model in is_protein}
    found = [frame for sequence in records for frame in find_frames(sequence, entry.chunk_length)]
    proteins, nucleotides = [frame.protein for frame in found], [frame.nucleotides for frame in found]
    return {model: proteins if protein else nucleotides for model, protein in is_protein.items()}


def compare(outcome: Receipt, entry: Manifest, models: dict[str, Path], encoders: dict[str, Any]) -> int:
    """Hold a dozen rows of each output against their sequence embedded alone; return how many values there are."""
    assert (outcome.state, outcome.error, outcome.job) == ("done", "", entry.job)
    file = read_embeddings(outcome.embeddings)
    check_records(outcome, file)
    wanted = texts(entry, models)
    names = {f"{model}/{output.name}" for model, asked in entry.models.items() for output in asked.outputs}
    assert file.matrices.keys() | file.residues.keys() == names
    for model, sequences in wanted.items():
        tokenizer = load_tokenizer(read_prepared(models[model]), models[model])
        outputs = entry.models[model].outputs
        window = entry.models[model].max_length if entry.models[model].long == "window" else None
        held = {output: (file.residues | file.matrices)[f"{model}/{output.name}"] for output in outputs}
        assert {len(rows) for rows in held.values()} == {len(sequences)}
        for row in range(0, len(sequences), 1 + len(sequences) // 12):
            ids, lengths = tokenizer([sequences[row]])
            alone = encoders[model].embed(torch.from_numpy(ids.astype(np.int64)), lengths.tolist(), outputs, window)
            for output, values in alone.items():
                found = held[output][row].reshape(values.shape)
                np.testing.assert_allclose(found, values.numpy(), rtol=1e-5, atol=1e-5)
    return sum(matrix.size for matrix in file.matrices.values()) + sum(
        part.size for parts in file.residues.values() for part in parts
    )


def records_table(outcome: Receipt) -> list[dict[str, str]]:
    """The lines of the table of records that lies beside the embeddings."""
    with open(Path(outcome.embeddings).with_name("records.tsv"), newline="") as table:
        return list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))


def check_records(outcome: Receipt, file: Embeddings) -> None:
    """Every record has a line in the table, which says the same as the embeddings file and the receipt."""
    rows = records_table(outcome)
    assert [row["record"] for row in rows] == file.records.ids
    assert [row["status"] for row in rows] == file.records.status
    assert [int(row["residues_used"]) for row in rows] == file.records.residues_used.tolist()
    assert [bool(row["reason"]) for row in rows] == [status != "ok" for status in file.records.status]
    assert len(rows) == outcome.counts["records"]
    counted = Counter(file.records.status)
    assert {status: outcome.counts[status] for status in counted} == counted


def proteins(path: Path, count: int, length_aa: int, seed: int = 1) -> Path:
    """Write random proteins, all different."""
    letters = AMINO_ACIDS[np.random.default_rng(seed).integers(0, 20, (count, length_aa))]
    path.write_text("".join(f">p{number}\n{''.join(row)}\n" for number, row in enumerate(letters)))
    return path
