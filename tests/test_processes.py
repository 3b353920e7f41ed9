"""Processes beside another: they end with it, however it goes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

SCRIPTS = Path(__file__).parents[1] / "workflow/scripts"
LONG_S = 120
PARENT = """
import os, time
from holdfast.processes import beside

if __name__ == "__main__":
    with beside(2) as processes:
        print(processes.submit(os.getpid).result(), flush=True)
        processes.submit(time.sleep, 1e6)
        time.sleep(1e6)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_leaves_none_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        started = psutil.Process(parent.pid).children(recursive=True)
        assert len(started) >= 2  # one of them at work, and the tracker of multiprocessing
        parent.send_signal(number)
        parent.wait(LONG_S)
    _, alive = psutil.wait_procs(started, LONG_S)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
