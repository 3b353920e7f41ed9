"""How errors read, leave a process, and travel between processes."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast.errors import ConfigError, HoldfastError, InputError, ResourceError, WeightsError, guarded
from holdfast.spool.job import ManifestError

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"


def ending(error: BaseException) -> int:
    """Exit code of an entry point that raises."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(main)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("chunk_length: must be at least 3"), 2),
        (WeightsError("model.pt: has another digest"), 2),
        (InputError("no such file", "a.fna"), 2),
        (ManifestError("a.yaml: not YAML"), 2),
        (ResourceError("cuda:1: the worker died"), 1),
        (OSError("the disk is gone"), 1),
    ],
)
def test_an_error_of_the_user_or_the_machine_is_one_line_and_an_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(error) == code
    assert capsys.readouterr() == ("", f"holdfast: error: {error}\n")


def test_an_error_of_the_system_names_the_file_and_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(FileNotFoundError(2, "No such file or directory", "a.yaml")) == 1
    assert capsys.readouterr() == ("", "holdfast: error: a.yaml: No such file or directory\n")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1)])
def test_an_interrupt_and_a_closed_pipe_end_silently(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(error) == code
    assert capsys.readouterr() == ("", "")


def test_the_line_is_written_at_once_since_jobs_share_a_terminal(tmp_path: Path) -> None:
    """PYTHONUNBUFFERED, which images of containers often set, lets `print` write its end of line by itself."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # which keeps each write apart
    with reading, writing:
        command = [
            sys.executable,
            str(SCRIPTS / "entry.py"),
            "collect",
            "r.json",
            "--fasta",
            "a",
            "--output",
            "o.h5",
            "--records",
            "r.tsv",
        ]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        assert subprocess.run(command, cwd=tmp_path, env=environment, stderr=writing.fileno()).returncode == 1
        assert reading.recv(1000) == b"holdfast: error: r.json: is missing; run again\n"


def test_success_returns_and_a_bug_shows_its_traceback() -> None:
    done = []
    guarded(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: done.append(1 // 0))


def test_an_input_error_says_file_line_and_record() -> None:
    assert str(InputError("is empty", "a b.fna")) == "a b.fna: is empty"
    assert str(InputError("is bad", "a.fna", 7)) == "a.fna, line 7: is bad"
    assert str(InputError("is bad", "a.fna", 7, "c1")) == "a.fna, line 7, record 'c1': is bad"
    assert str(InputError("is bad", "a.fna", record="r" * 80)) == f"a.fna, record '{'r' * 80}': is bad"
    assert str(InputError("is bad", "a.fna", record="r" * 300)) == f"a.fna, record '{'r' * 77}...': is bad"


@pytest.mark.parametrize(
    "error",
    [
        HoldfastError("a"),
        ConfigError("b"),
        WeightsError("c"),
        ResourceError("d"),
        ManifestError("e"),
        InputError("is bad", "a.fna", 7, "c1"),
        InputError("is gone", "a.fna"),
    ],
)
def test_every_error_comes_back_from_another_process(error: HoldfastError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.exit_code) == (type(error), str(error), error.exit_code)
