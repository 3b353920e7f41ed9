"""Where commands write: devices, pipes and links stay what they are, and nothing that is read is written over."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import pytest

from tests.fuzz import seeds

ENTRY = Path(__file__).parents[1] / "workflow/scripts/entry.py"
FASTA = ">a\n" + "ATGGCC" * 100 + "\n"


def holdfast(*words: object, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ENTRY, *map(str, words)]
    return subprocess.run(command, text=True, timeout=300, **{"capture_output": True, **options})  # type: ignore[call-overload]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory with what commands read, and with what they write of it in ``expected``."""
    for name, content in seeds.beside("command").items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b.fna").write_text(FASTA)
    (tmp_path / "expected").mkdir()
    assert frames(tmp_path, tmp_path / "expected/n", tmp_path / "expected/p").returncode == 0
    return tmp_path


def frames(work: Path, nucleotides: object, proteins: object, **options: object) -> "subprocess.CompletedProcess[str]":
    outputs = ("--nucleotides", nucleotides, "--proteins", proteins)
    return holdfast("frames", work / "b.fna", "--chunk-length", 300, *outputs, **options)


def test_a_pipe_is_written_to_and_stays_a_pipe(work: Path) -> None:
    pipe = work / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    ended = frames(work, work / "n", pipe)
    reader.join()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert read == [(work / "expected/p").read_bytes()]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes devices")
def test_a_device_is_written_to_and_stays_a_device(work: Path) -> None:
    """A second null device, so that a mistake costs nothing."""
    null = work / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.read_bytes()
    except PermissionError:
        pytest.skip("no devices may be made or opened here")
    for outputs in ((null, work / "p"), (null, null)):
        assert frames(work, *outputs).returncode == 0
        assert stat.S_ISCHR(null.lstat().st_mode)
    assert (work / "p").read_bytes() == (work / "expected/p").read_bytes()


def test_a_symlink_stays_and_what_it_leads_to_is_written(work: Path) -> None:
    (work / "elsewhere").mkdir()
    for name, target in (("n", "elsewhere/there"), ("p", "elsewhere/not yet")):
        (work / name).symlink_to(target)
    (work / "elsewhere/there").write_text("old")
    assert frames(work, work / "n", work / "p").returncode == 0
    for name in "np":
        assert (work / name).is_symlink()
        assert (work / name).read_bytes() == (work / "expected" / name).read_bytes()
    assert sorted(os.listdir(work / "elsewhere")) == ["not yet", "there"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_takes_the_file_alone_whether_it_is_a_pipe_or_a_file(work: Path, name: str) -> None:
    expected = (work / "expected/p").read_text()
    piped = frames(work, work / "n", name)
    assert (piped.returncode, piped.stdout) == (0, expected)
    assert piped.stderr == "1 records, 2 chunks, 12 stop-free frames\n"
    with open(work / "redirected", "w") as file:
        file.write("before\n")
        file.flush()
        redirected = frames(work, work / "n", name, capture_output=False, stdout=file, stderr=subprocess.PIPE)
    assert redirected.returncode == 0
    assert (work / "redirected").read_text() == f"before\n{expected}"


def test_hdf5_goes_through_a_pipe_too(work: Path) -> None:
    with open(work / "out.h5", "wb") as file:
        command = [sys.executable, ENTRY, "export", work / "e.h5", "--model", "esm2", "--output", "/dev/stdout"]
        subprocess.run(["sh", "-c", '"$@" | cat', "sh", *command], stdout=file, check=True, timeout=300)
    with h5py.File(work / "out.h5") as exported:
        assert exported.attrs["model"] == "esm2"


SAME = "is the same file as"
COMMANDS: dict[str, tuple[str, str, int]] = {
    "the input": ("frames b.fna --chunk-length 300 --nucleotides ./b.fna --proteins p", SAME, 2),
    "the input by a link": ("frames link --chunk-length 300 --nucleotides n --proteins b.fna", SAME, 2),
    "the input by a second name": ("frames twin --chunk-length 300 --nucleotides n --proteins b.fna", SAME, 2),
    "two outputs": ("frames b.fna --chunk-length 300 --nucleotides x --proteins sub/../x", SAME, 2),
    "a directory": ("frames b.fna --chunk-length 300 --nucleotides sub --proteins p", "is a directory, name a file", 1),
    "no directory": ("frames b.fna --chunk-length 300 --nucleotides no/n --proteins p", "no such directory", 1),
    "export": ("export e.h5 --model esm2 --output e.h5", SAME, 2),
    "export of an unknown model": ("export e.h5 --model prott5 --output o.h5", "holds no embeddings of 'prott5'", 2),
    "export of an unknown layer": ("export e.h5 --model esm2 --layer 9 --output o.h5", "'esm2' of layer 9 with", 2),
    "export of something else": ("export b.fna --output o", "no HDF5 file, or one cut short; give an embed", 2),
    "export into a file": ("export e.h5 --output b.fna", "Not a directory", 1),
    "convert-classifier": ("convert-classifier link.safetensors c.safetensors", SAME, 2),
    "convert-classifier, another name": ("convert-classifier c.pth c.pt", "must end in .safetensors", 2),
    "serve": ("serve --config pool.yaml --spool spool --endpoint pool.yaml", SAME, 2),
    "embed": ("embed records.tsv --model m --output link.h5", SAME, 2),
    "embed, its table": ("embed x.records.tsv --model m --output x.npz", SAME, 2),
    "embed a directory": ("embed sub --model m --output x.npz", "is a directory or a pipe; give a file", 2),
    "an empty path": ("frames b.fna --chunk-length 300 --proteins p --nucleotides=", "'' is no path", 2),
    "a home directory": (
        "frames --chunk-length 300 --nucleotides=n --proteins=p ~/none.fna",
        "/home/me/none.fna: no such",
        2,
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_what_would_destroy_something_or_come_to_nothing_is_one_line(work: Path, case: str) -> None:
    (work / "sub").mkdir()
    (work / "link").symlink_to("b.fna")
    (work / "twin").hardlink_to(work / "b.fna")
    (work / "link.safetensors").symlink_to("c.safetensors")
    (work / "records.tsv").write_text(FASTA)
    (work / "link.h5").symlink_to("records.tsv")
    (work / "x.records.tsv").write_text(FASTA)
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    words, message, code = COMMANDS[case]
    environment = {**os.environ, "HOME": "/home/me", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    ended = holdfast(*words.split(), cwd=work, env=environment)
    assert ended.returncode == code, ended.stderr
    assert message in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("holdfast")
    assert "Traceback" not in ended.stderr
    after = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path in before} == before
    assert {path.name for path in after.keys() - before.keys()} <= {"pools"}
