"""What people see of a run: the lines in its log, and `holdfast status` beside it."""

import json
import os
import pty
import re
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.drills.faults import Fault, Injection
from tests.workflow.conftest import DEMO, HOLDFAST, REPOSITORY, TIMEOUT_S, NewProject

SCHEMA = yaml.safe_load((REPOSITORY / "workflow/schemas/pool_status.schema.yaml").read_text())
LINE = re.compile(r"holdfast: (\d+) of (\d+) samples done(?:, (\d+) failed)?[^\r\n;]*; ([\d,]+) sequences, ")


class Terminal:
    """A command with a pseudo-terminal of its own."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (40, 120))
        self.text = ""
        self._ours = ours
        heard = ["env", "--default-signal=INT", *command]  # also where whoever started the tests ignores it
        environment = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(heard, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                self.text += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:  # everybody has closed the other end
                return

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        os.close(self._ours)


def status(spool: Path, *arguments: str) -> list[str | Path]:
    return [*HOLDFAST, "status", spool, *arguments]


def look(spool: Path) -> dict[str, Any]:
    """What `holdfast status` says as JSON, held against its schema."""
    ended = subprocess.run(status(spool, "--json"), capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    seen: dict[str, Any] = json.loads(ended.stdout)
    jsonschema.validate(seen, SCHEMA)
    return seen


def numbers(text: str) -> list[tuple[int, int, int, int]]:
    """Done, samples, failed and sequences of every line."""
    return [
        (int(done), int(samples), int(failed or 0), int(sequences.replace(",", "")))
        for done, samples, failed, sequences in LINE.findall(text)
    ]


def test_lines_say_how_far_a_run_is_and_status_says_more(project: NewProject) -> None:
    """One sample is broken; the other takes two minutes on any machine, if it may, in batches that are made slow."""
    some = project()
    slow = Injection(some.path("faults"), Fault("embed", "slow", words="1"))
    some.write("data/bacterium.fna.gz", (DEMO / "data/bacterium_train.fna.gz").read_bytes())
    some.write("data/broken.fna", ">a\nACGT\n>a\nACGT\n")
    some.configure(pool={"tokens_per_batch": 1024})
    some.write_sheet(("bacterium", "data/bacterium.fna.gz"), ("bad", "data/broken.fna"))
    spool = some.path(".holdfast/spool")
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(some.run, "--keep-going", **slow.environment)

        def wait(until: Callable[[], bool]) -> None:
            while not until():
                assert not running.done(), running.result().text
                time.sleep(0.1)

        wait((spool / "pools").is_dir)
        with Terminal(status(spool, "--live")) as live:
            wait(lambda: [pool["progress"]["failed"] for pool in look(spool)["pools"]] == [1])
            wait(lambda: look(spool)["pools"][0]["progress"]["tokens_per_s"] > 0)
            seen = look(spool)
            wait(lambda: "cpu:0 CPU, 2 threads" in live.text or live.process.poll() is not None)
            live.process.send_signal(signal.SIGINT)
            assert live.process.wait(TIMEOUT_S) == 130, live.text
        assert "Traceback" not in live.text
        (log,) = some.path(".snakemake/log").iterdir()
        wait(lambda: len({sequences for *_, sequences in numbers(log.read_text())}) > 1)
        slow.release()
        run = running.result()
    assert run.returncode == 1, run.text

    (pool,) = seen["pools"]
    progress = pool["progress"]
    assert (pool["state"], pool["models"]) == ("ready", ["dnabert_s", "esm2"])
    (device,) = progress["devices"]
    assert (device["name"], device["state"], device["temperature_c"]) == ("cpu:0", "ready", None)
    assert 0 < device["busy"] <= 1
    assert [(job["sample"], job["state"]) for job in progress["jobs"]] == [("bacterium", "embedding")]
    (job,) = progress["jobs"]
    assert 0 < job["tokens_left"] == progress["tokens_left"] < job["tokens"] == progress["read_tokens"]["contigs"]
    assert seen["left"]["tokens"] == progress["tokens_left"]
    assert not seen["left"]["about"]
    assert ["broken.fna" in error["message"] for error in progress["errors"]] == [True]
    assert progress["budgets"] == {"dnabert_s": 1024, "esm2": 1024}

    said = numbers(run.text)
    assert len({sequences for *_, sequences in said}) > 1, run.text
    assert said == sorted(said)
    assert said[-1] == (1, 2, 1, job["sequences"])
    assert not re.search(r"[\r\x1b]", run.text)
    assert numbers(log.read_text()) == said
    assert 1 <= run.text.count("line 3, record 'a': the id") <= 2
    assert "line 3, record 'a': the id" in run.text[run.text.index("Failed (results/failures.tsv)") :]

    ended = subprocess.run(status(spool), capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert f"{pool['pool']} ended (no job open at SIGTERM)" in " ".join(ended.stdout.split())
    logged = some.read("logs/pool.0.log").splitlines()
    assert sum(line.endswith(" INFO ending: no job open at SIGTERM") for line in logged) == 1
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) ", line) for line in logged)
    assert "1 jobs done, 1 failed; " in logged[-1]
