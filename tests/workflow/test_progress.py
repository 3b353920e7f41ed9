"""What people see of a run: the lines in its log, and `holdfast status` beside it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from .conftest import DEMO, REPOSITORY, SCRIPTS, NewProject, Project

SCHEMA = yaml.safe_load((REPOSITORY / "workflow/schemas/pool_status.schema.yaml").read_text())
LINE = re.compile(r"holdfast: (\d+) of (\d+) samples done(?:, (\d+) failed)?([^\r\n;]*); ([\d,]+) sequences, ")


class TerminalRun:
    """A command with a pseudo-terminal of its own."""

    def __init__(self, command: Sequence[str | Path], environment: dict[str, str]) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (40, 120))
        self.text = ""
        self._ours = ours
        heard = ["env", "--default-signal=INT", *command]  # also where whoever started the tests ignores it
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

    def end(self, timeout_s: float) -> int:
        """Wait for its end; its exit status."""
        status = self.process.wait(timeout_s)
        self._thread.join(timeout_s)
        os.close(self._ours)
        return status


def status(spool: Path, *arguments: str) -> list[str | Path]:
    return [sys.executable, SCRIPTS / "entry.py", "status", spool, *arguments]


def look(spool: Path) -> dict[str, Any]:
    """What `holdfast status` says as JSON, held against its schema."""
    ended = subprocess.run(status(spool, "--json"), capture_output=True, text=True, check=True, timeout=60)
    seen: dict[str, Any] = json.loads(ended.stdout)
    jsonschema.validate(seen, SCHEMA)
    return seen


def numbers(text: str) -> list[tuple[int, int, int, int]]:
    """Done, samples, failed and sequences of every line, repetitions left out."""
    found = [tuple(int((match[n] or "0").replace(",", "")) for n in (1, 2, 3, 5)) for match in LINE.finditer(text)]
    return [entry for n, entry in enumerate(found) if n == 0 or entry != found[n - 1]]  # type: ignore[misc]


def prepare(some: Project) -> None:
    """Samples that take ten seconds on an idle machine, in small batches, and one that is broken."""
    some.write("data/phage.fna", (DEMO / "data/bacterium_train.fna.gz").read_bytes())
    some.write("data/protein.faa", ">p\nMKVLA\n")
    some.write("data/broken.fna", ">a\nACGT\n>b\nAC!GT\n")
    some.configure(pool={"tokens_per_batch": 1024})


def test_lines_say_how_far_a_run_is_and_status_says_more(project: NewProject) -> None:
    some = project()
    prepare(some)
    some.write_sheet(("phage", "data/phage.fna"), ("bad", "data/broken.fna"))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TERM": "xterm"}
    command = [Path(sys.executable).with_name("snakemake"), "-s", some.repository / "workflow/Snakefile"]
    run = TerminalRun([*command, "-d", some.directory, "--cores", "2", "--keep-going"], environment)
    spool = some.path(".holdfast/spool")
    seen: dict[str, Any] = {"pools": []}
    deadline = time.monotonic() + 300
    while not any(pool["progress"]["tokens_per_s"] and pool["progress"]["failed"] for pool in seen["pools"]):
        assert run.process.poll() is None, run.text
        assert time.monotonic() < deadline
        time.sleep(0.2)
        if (spool / "pools").is_dir():
            seen = look(spool)
    live = TerminalRun(status(spool, "--live"), environment)
    while "cpu:0 CPU, 2 threads" not in live.text:
        assert live.process.poll() is None, live.text
        assert time.monotonic() < deadline
        time.sleep(0.1)
    live.process.send_signal(signal.SIGINT)
    assert live.end(30) == 130
    assert "Traceback" not in live.text
    assert run.end(300) == 1

    (pool,) = seen["pools"]
    progress = pool["progress"]
    assert (pool["state"], pool["models"]) == ("ready", ["dnabert_s", "esm2"])
    (device,) = progress["devices"]
    assert (device["name"], device["state"], device["temperature_c"]) == ("cpu:0", "ready", None)
    assert 0 < device["busy"] <= 1
    assert [(job["sample"], job["state"]) for job in progress["jobs"]] == [("phage", "embedding")]
    (job,) = progress["jobs"]
    assert 0 < job["tokens_left"] == progress["tokens_left"] < job["tokens"] == progress["read_tokens"]["contigs"]
    assert seen["left"]["tokens"] == progress["tokens_left"]
    assert not seen["left"]["about"]
    assert ["broken.fna" in error["message"] for error in progress["errors"]] == [True]
    assert progress["budgets"] == {"dnabert_s": 1024, "esm2": 1024}

    said = numbers(run.text)
    assert len(said) > 1, run.text
    assert said == sorted(said)
    assert said[-1] == (1, 2, 1, job["sequences"])
    assert 1 <= run.text.count("line 4, record 'b': '!'") <= 2
    assert "line 4, record 'b': '!'" in run.text[run.text.index("Failed (results/failures.tsv)") :]

    ended = subprocess.run(status(spool), capture_output=True, text=True, check=True, timeout=60)
    assert f"{pool['pool']} ended asked to end, with no job open (SIGTERM)" in " ".join(ended.stdout.split())
    log = some.read("logs/pool.0.log").splitlines()
    assert sum(line.endswith(" INFO ending: asked to end, with no job open (SIGTERM)") for line in log) == 1
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) ", line) for line in log)
    assert "1 jobs done, 1 failed; " in log[-1]


def test_a_file_gets_plain_lines_and_quiet_is_quiet(project: NewProject) -> None:
    some = project()
    prepare(some)
    some.write_sheet(("protein", "data/protein.faa", "proteins"))
    dry = some.run("--dry-run")
    quiet = some.run("--quiet", "progress")
    for run in (dry, quiet):
        assert run.returncode == 0, run.text
        assert "holdfast: " not in run.text
    some.write_sheet(("protein", "data/protein.faa", "proteins"), ("phage", "data/phage.fna"))
    run = some.run()
    assert run.returncode == 0, run.text
    said = numbers(run.text)
    assert len({sequences for *_, sequences in said}) > 1, run.text
    assert said == sorted(said)
    assert said[-1][:3] == (1, 1, 0)
    assert not re.search(r"[\r\x1b]", run.text)
    assert any(LINE.search(path.read_text()) for path in some.path(".snakemake/log").iterdir())
