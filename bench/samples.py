"""Samples through a real pool: one large against many small, and what a tiny job costs beside its work."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast import manifest, prepared, status
from holdfast.receipt import Receipt
from holdfast.settings import PoolSettings
from holdfast.spool import Spool

SERVE = Path(__file__).parents[1] / "workflow" / "scripts" / "serve_pool.py"
RESIDUES_AA = 166


class Client:
    """Submits protein samples to a pool and waits for them."""

    def __init__(self, directory: Path, model: Path, pool: status.PoolState) -> None:
        self.directory = directory
        self.digest = prepared.read(model).weights_sha256
        self.spool = Spool(pool.spool)
        self.load_s = float(pool.progress["load_s"])
        self._number = 0
        self._letters = random.Random(11)

    def run(self, samples: int, proteins: int) -> tuple[float, list[Receipt]]:
        """Seconds from the first submission to the last receipt, and the receipts; all sequences are new."""
        jobs = []
        for _ in range(samples):
            self._number += 1
            path = self.directory / f"sample{self._number}.faa"
            sequences = ("".join(self._letters.choices("LAGVSERTIDPKQNFYMHWC", k=RESIDUES_AA)) for _ in range(proteins))
            path.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
            jobs.append(manifest.make(path.stem, "proteins", str(path), 0, {"esm2": self.digest}, "auto", "float32"))
        began = time.perf_counter()
        for job in jobs:
            self.spool.submit(job)
        receipts: list[Receipt] = []
        for job in jobs:
            while (receipt := self.spool.receipt(job.job)) is None:
                time.sleep(0.002)
            if receipt.state != "done":
                raise SystemExit(f"{receipt.sample}: {receipt.error}")
            receipts.append(receipt)
        return time.perf_counter() - began, receipts


@contextmanager
def serving(directory: Path, model: Path, device: str, threads: int, tokens_per_batch: int) -> Iterator[Client]:
    """A pool that holds one prepared ESM-2, ready."""
    directory.mkdir()
    settings = PoolSettings(
        {"esm2": str(model)}, device=device, threads=threads, tokens_per_batch=tokens_per_batch, gpu=1
    )
    settings.write(directory / "pool.yaml")
    endpoint, spool = directory / "endpoint", directory / "spool"
    with open(directory / "pool.log", "w") as log:
        command = [sys.executable, SERVE, "--config", directory / "pool.yaml", "--spool", spool, "--endpoint", endpoint]
        server = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            yield Client(directory, model, _ready(server, endpoint, directory / "pool.log"))
        finally:
            server.terminate()
            server.wait()


def _ready(server: "subprocess.Popen[bytes]", endpoint: Path, log: Path) -> status.PoolState:
    while server.poll() is None:
        announced = status.read(endpoint)
        if announced is not None:
            state = status.read(status.state_path(announced.spool, announced.identity.pool))
            if state is not None and state.state == "ready":
                return state
        time.sleep(0.05)
    raise SystemExit(f"the pool ended: {log.read_text()}")
