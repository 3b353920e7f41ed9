"""The command line: its help, and the wheel that brings it to an environment with nothing else."""

import argparse
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from holdfast import __version__
from holdfast.cli import COMMANDS

ROOT = Path(__file__).parents[1]
ENTRY = ROOT / "workflow/scripts/entry.py"
PEOPLE = {
    *("embed", "prepare", "verify", "frames", "export", "serve", "status", "cache", "forget", "convert-classifier"),
    "crate",
}
NEEDED = (  # numpy, PyYAML, jsonschema and what that needs
    *("attr", "attrs", "jsonschema", "jsonschema_specifications", "numpy", "numpy.libs", "referencing", "rpds"),
    *("typing_extensions.py", "yaml"),
)


def holdfast(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ENTRY, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "200"})


def test_the_help_names_what_people_use_and_nothing_else() -> None:
    said = holdfast("--help")
    assert said.returncode == 0
    assert set(re.findall(r"^    ([a-z][a-z-]*)(?: |$)", said.stdout, re.MULTILINE)) == PEOPLE
    assert holdfast("--version").stdout == f"holdfast {__version__}\n"


@pytest.mark.parametrize("name", sorted(PEOPLE))
def test_the_help_of_a_command_is_complete_and_has_an_example(name: str) -> None:
    said = holdfast(name, "--help")
    assert said.returncode == 0
    (example,) = re.findall(rf"^Example: (holdfast {name} .+)$", said.stdout, re.MULTILINE)
    options = re.findall(r"--[a-z0-9-]+", example)
    assert set(options) <= set(re.findall(r"--[a-z0-9-]+", said.stdout.partition("Example")[0]))
    parser = argparse.ArgumentParser()
    COMMANDS[name][0](parser)
    assert [action.dest for action in parser._actions if not action.help] == []


def test_what_is_wrong_on_the_command_line_is_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    for words in (["nonsense"], [], ["frames"], ["frames", "a.fna", "--chunk-length", "x"]):
        said = holdfast(*words)
        assert (said.returncode, "Traceback" in said.stderr) == (2, False)
    outputs = ["--nucleotides", tmp_path / "n", "--proteins", tmp_path / "p"]
    said = holdfast("frames", tmp_path / "none.fna", "--chunk-length", 500, *outputs)
    assert said.returncode == 2
    assert said.stderr == f"holdfast: error: {tmp_path}/none.fna: no such file; check the path\n"


def test_only_rules_call_the_rest() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    called = set(re.findall(r"\{input\.holdfast:q\} ([a-z-]+)", rules))
    assert called <= COMMANDS.keys()
    assert COMMANDS.keys() - PEOPLE <= called


def test_a_wheel_in_an_empty_environment_finds_frames(tmp_path: Path) -> None:
    """With the few packages that this takes, from the environment of the tests: nothing is fetched."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    for name in ("pyproject.toml", "workflow"):  # as they are now, committed or not
        subprocess.run(["cp", "-a", ROOT / name, source], check=True)
    subprocess.run([*build, tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("holdfast-*.whl")
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    (site,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=300)
    packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for needed in (
        "attr",
        "attrs",
        "jsonschema",
        "jsonschema_specifications",
        "numpy",
        "numpy.libs",
        "referencing",
        "rpds",
        "yaml",
    ):
        (site / needed).symlink_to(packages / needed)
    (site / "typing_extensions.py").symlink_to(packages / "typing_extensions.py")
    assert (site / "holdfast/run/published_values.yaml").is_file()
    command = tmp_path / "empty/bin/holdfast"
    assert subprocess.check_output([command, "--version"], text=True) == f"holdfast {__version__}\n"
    (tmp_path / "a.fna").write_text(">a\n" + "ATGGCC" * 50 + "\n")
    outputs = ["--nucleotides", tmp_path / "n.fna", "--proteins", tmp_path / "p.faa"]
    frames = [command, "frames", tmp_path / "a.fna", "--chunk-length", "300", *outputs]
    ended = subprocess.run(frames, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    assert ended.stdout == "1 records, 1 chunks, 6 stop-free frames\n"
    assert (tmp_path / "p.faa").read_text().startswith(">a_chunk_1F1\n" + "MA" * 50 + "\n")
    (tmp_path / "pool.yaml").write_text("threats: 1\n")
    serve = [command, "serve", "--config", "pool.yaml", "--spool", "spool", "--endpoint", "endpoint.json"]
    ended = subprocess.run(serve, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode in (1, 2)
