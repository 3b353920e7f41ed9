"""Files are there whole or not at all, whatever happens to their writer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast.files import atomic_text, temporary_path

SCRIPTS = Path(__file__).parents[1] / "workflow/scripts"


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another Python that can import the package."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_file_appears_at_the_end_and_in_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_text(path) as file:
        file.write("菌 ö\n")
        assert not path.exists()
    assert path.read_bytes() == "菌 ö\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_text(path) as file:
            file.write("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_binary_file_is_written_under_a_name_beside_it(tmp_path: Path) -> None:
    with temporary_path(tmp_path / "a.bin") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"\0\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\0\xff"


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_text(tmp_path / "no" / "a.txt"):
        pytest.fail("nothing can be written there")


@pytest.mark.parametrize("name", ["x" * 255, "菌" * 85], ids=["ascii", "three bytes a letter"])
def test_the_longest_names_a_file_system_takes_can_be_written(tmp_path: Path, name: str) -> None:
    with atomic_text(tmp_path / name) as file:
        file.write("a")
    assert (tmp_path / name).read_text() == "a"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    code = """
import sys
from holdfast.files import atomic_text
for letter in "abcdefghij" * 6:
    with atomic_text(sys.argv[1]) as file:
        for _ in range(20):
            file.write(letter * 5000)
            file.flush()
"""
    seen = set()
    with python(code, path) as first, python(code, path) as second:
        while first.poll() is None or second.poll() is None:
            if path.exists():
                text = path.read_text()
                assert text == text[:1] * 100_000
                seen.add(text[0])
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(seen) > 1
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = """
import sys, time
from holdfast.files import atomic_text
with atomic_text(sys.argv[1]) as file:
    file.write("new")
    file.flush()
    print("half", flush=True)
    time.sleep(60)
"""
    writer = python(code, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert path.read_text() == "old"
    with atomic_text(path) as file:
        file.write("newer")
    assert path.read_text() == "newer"
