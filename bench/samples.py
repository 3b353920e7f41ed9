"""Samples through a real pool: one large against many small, and what a tiny job costs beside its work."""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from holdfast.models.registry import read_prepared
from holdfast.pool.settings import pool_settings
from holdfast.spool.job import Receipt, make_manifest, make_request
from holdfast.spool.spool import Spool
from holdfast.spool.state import PoolState, read_state, state_path

LOG = "pool.log"
SERVE = (str(Path(__file__).parents[1] / "workflow" / "scripts" / "entry.py"), "serve")
RESIDUES = "LAGVSERTIDPKQNFYMHWC"
SENSE_CODONS = [codon for codon in map("".join, product("ACGT", repeat=3)) if codon not in ("TAA", "TAG", "TGA")]
RESIDUES_AA = 166
CHUNK_BP = 500
ASKED = {"layers": ["last"], "long": None, "max_length": None}


class Client:
    """Submits samples to a pool and waits for them.

    Attributes:
        start_s: Seconds from the start of the pool until it was ready.
        load_s: What its worker says of that, s.
        server: The process of the supervisor.
    """

    def __init__(
        self, directory: Path, models: dict[str, Path], pool: PoolState, server: "subprocess.Popen[bytes]"
    ) -> None:
        self.directory = directory
        self.known = {model: read_prepared(path) for model, path in models.items()}
        self.spool = Spool(pool.spool)
        self.load_s = float(pool.progress.load_s)
        self.start_s = 0.0
        self.server = server
        self._number = 0
        self._letters = random.Random(11)

    def run(
        self, samples: int, records: int, kind: str = "proteins", residues_aa: Sequence[int] = (RESIDUES_AA,)
    ) -> tuple[float, list[Receipt]]:
        """Seconds from the first submission to the last receipt, and the receipts; all sequences are new.

        A record is a protein of one of these lengths, or for ``contigs`` a chunk with one stop-free frame at least.
        """
        letters, lengths = (SENSE_CODONS, [CHUNK_BP // 3]) if kind == "contigs" else (RESIDUES, residues_aa)
        choices, choice = self._letters.choices, self._letters.choice
        paths = []
        for _ in range(samples):
            self._number += 1
            path = self.directory / f"sample{self._number}.fasta"
            sequences = ("".join(choices(letters, k=choice(lengths))) for _ in range(records))
            path.write_text("".join(f">r{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
            paths.append(path)
        return self.embed(paths, kind)

    def embed(
        self, paths: Sequence[Path], kind: str = "proteins", pooling: Sequence[str] = ("mean",)
    ) -> tuple[float, list[Receipt]]:
        """Seconds from the first submission of these files to the last receipt, and the receipts."""
        fitting = {model: known for model, known in self.known.items() if known.fits(kind)}
        asked = {**ASKED, "pooling": list(pooling)}
        requests = {model: make_request(model, known, asked) for model, known in fitting.items()}
        jobs = [make_manifest(path.stem, kind, str(path), CHUNK_BP, 1, requests, "auto", "float16") for path in paths]
        began = time.perf_counter()
        for job in jobs:
            self.spool.submit(job)
        receipts: list[Receipt] = []
        for job in jobs:
            while (receipt := self.spool.receipt(job.job)) is None:
                if self.server.poll() is not None:
                    raise SystemExit(f"the pool ended: {(self.directory / LOG).read_text()}")
                time.sleep(0.002)
            if receipt.state != "done":
                raise SystemExit(f"{receipt.sample}: {receipt.error}")
            receipts.append(receipt)
        return time.perf_counter() - began, receipts

    def beside(self, jobs: int = 15) -> float:
        """What a job of one record takes beside the device's work, median of some, s."""
        found = []
        for _ in range(jobs):
            taken, (receipt,) = self.run(1, 1)
            found.append(taken - receipt.seconds["device_s"])
        return statistics.median(found)


@contextmanager
def serving(
    directory: Path, models: dict[str, Path], program: Sequence[str] = SERVE, **settings: Any
) -> Iterator[Client]:
    """A pool that holds these prepared models, ready.

    Args:
        directory: Where; made.
        models: Directory of each model.
        program: The Python file that serves, and its first arguments.
        **settings: Of the pool, other than models.
    """
    directory.mkdir()
    paths = {model: str(path) for model, path in models.items()}
    pool_settings({"models": paths, **settings}, "bench").write(directory / "pool.yaml")
    endpoint, spool = directory / "endpoint", directory / "spool"
    with open(directory / LOG, "w") as log:
        command = [sys.executable, *program, "--config", directory / "pool.yaml", "--spool", spool]
        began = time.perf_counter()
        server = subprocess.Popen([*map(str, command), "--endpoint", str(endpoint)], stdout=log, stderr=log)
        try:
            client = Client(directory, models, _ready(server, endpoint, directory / LOG), server)
            client.start_s = time.perf_counter() - began
            yield client
        finally:
            server.terminate()
            server.wait()


def _ready(server: "subprocess.Popen[bytes]", endpoint: Path, log: Path) -> PoolState:
    while server.poll() is None:
        announced = read_state(endpoint)
        if announced is not None:
            state = read_state(state_path(announced.spool, announced.identity.pool))
            if state is not None and state.state == "ready":
                return state
        time.sleep(0.02)
    raise SystemExit(f"the pool ended: {log.read_text()}")
