"""The conda environments, the lock and the ranges of pyproject.toml say the same, and no more than the rules import."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
import yaml
from holdfast.models.registry import MODELS
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPI_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch"}
IMPORT_NAMES = {
    "yaml": "pyyaml",
    "esm": "fair-esm",
    "pynvml": "nvidia-ml-py",
    "umap": "umap-learn",
    "vl_convert": "vl-convert-python",
}
ON_REQUEST = {"umap-learn"}  # not in the lock: wheels of numba come late for a new Python
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> dict[str, str]:
    lines = (ROOT / "envs" / "lock.txt").read_text().splitlines()
    pinned = [line.partition(";")[0].split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pinned}


def ranges() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]


def conda_pins(path: Path) -> dict[str, str]:
    pins = {}
    for entry in yaml.safe_load(path.read_text())["dependencies"]:
        name, version = re.fullmatch(r"([\w-]+)>?=([\w.]+)", entry).groups()
        pins[normal(PYPI_NAMES.get(name, name))] = version
    return pins


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_a_conda_environment_pins_what_the_lock_pins(path: Path) -> None:
    pins = conda_pins(path)
    assert pins.pop("python") == "3.11"
    assert pins.pop("cuda-version", "12") == "12"
    assert pins
    assert {name: pin for name, pin in pins.items() if name not in ON_REQUEST} == {
        name: lock()[name] for name in pins.keys() - ON_REQUEST
    }


def test_the_lock_satisfies_the_ranges_of_the_project() -> None:
    pinned = lock()
    for requirement in ranges():
        assert pinned[normal(requirement.name)] in requirement.specifier, requirement


def test_every_run_time_dependency_is_in_a_conda_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_hand = {"snakemake", "rich", "rocrate"}  # for commands that people run, not for rules
    wanted = {normal(Requirement(text).name) for text in project["dependencies"]} - by_hand
    named = {name for path in ENVIRONMENTS for name in conda_pins(path)}
    assert wanted == named - {"python", "cuda-version"} - ON_REQUEST


def test_the_conda_environments_name_only_living_channels() -> None:
    for path in ENVIRONMENTS:
        assert yaml.safe_load(path.read_text())["channels"] == ["conda-forge", "bioconda", "nodefaults"]


def imported(path: Path, seen: set[Path]) -> set[str]:
    """Packages that a file imports anywhere, itself or through the files of holdfast that it imports."""
    seen.add(path)
    names, own = set(), set()
    package = ROOT / "workflow/scripts/holdfast"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ("holdfast" if node.level else "", node.module)))
            if module == "holdfast":
                own |= {alias.name for alias in node.names}
            elif module.startswith("holdfast."):
                own.add(module.removeprefix("holdfast."))
                if "encoder" in {alias.name for alias in node.names}:  # models.encoder, which imports them by name
                    own |= set(MODELS)
            else:
                names.add(module.partition(".")[0])
    for file in {package / f"{name}.py" for name in own if (package / f"{name}.py").exists()} - seen:
        names |= imported(file, seen)
    return names - set(sys.stdlib_module_names)


def test_an_environment_holds_what_its_rules_import_and_nothing_else() -> None:
    needed: dict[str, set[str]] = {}
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for text in re.split(r"(?m)^ *rule\b", rules.read_text())[1:]:
            scripts, found = re.findall(r'script\("(\w+)"\)', text), re.findall(r'"../../envs/(\w+)\.yaml"', text)
            assert len(scripts) == ("shell:" in text) == bool(found), text
            for script, environment in product(scripts, found):
                names = imported(ROOT / f"workflow/scripts/{script}.py", set())
                needed.setdefault(environment, set()).update(IMPORT_NAMES.get(name, name) for name in names)
    assert "torch" in needed["pool"]
    assert "torch" not in needed["tables"]
    needed["pool"].remove("triton")  # which pytorch-gpu brings
    needed["models"].discard("triton")
    needed["report"].remove("umap-learn")  # imported where it is asked for, in the environment umap
    assert {name: {normal(package) for package in found} for name, found in needed.items()} == {
        path.stem: set(conda_pins(path)) - {"python", "cuda-version"} for path in ENVIRONMENTS
    }


@pytest.mark.parametrize("name", ["Dockerfile", "holdfast.def"])
def test_a_container_holds_the_run_time_dependencies_of_the_lock(name: str) -> None:
    """Both definitions copy two files, name the dependencies by pyproject.toml, and pin them by the lock."""
    text = (ROOT / "envs" / name).read_text()
    lines = [line.removeprefix("COPY").split() for line in text.splitlines() if " /opt/holdfast/" in line]
    files = {word for words in lines if words[-1].startswith("/opt/") for word in words[:-1] if word[0].isalpha()}
    assert files == {"pyproject.toml", "envs/lock.txt"}
    assert all((ROOT / file).is_file() for file in files)
    program = re.search(r"python -c '(.*)'", text)
    assert program is not None
    command = [sys.executable, "-c", program[1].replace("/opt/holdfast", str(ROOT))]
    needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert needed == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "--constraint /opt/holdfast/lock.txt --requirement /opt/holdfast/needed.txt" in text
    assert "/opt/holdfast/needed.txt" in text.partition(program[0])[2]
    for tool in ("apt-get update", "apt-get install --yes --no-install-recommends gcc libc6-dev", "pip install "):
        assert tool in text
