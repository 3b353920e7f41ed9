"""The conda environments, the lock and the ranges of pyproject.toml say the same, and no more than the rules import."""

import ast
import re
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
import yaml
from holdfast import cli
from holdfast.cli import COMMANDS
from holdfast.models.registry import FAMILIES
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPI_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch"}
IMPORT_NAMES = {
    "Bio": "biopython",
    "yaml": "pyyaml",
    "esm": "fair-esm",
    "pynvml": "nvidia-ml-py",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "vl_convert": "vl-convert-python",
}
WHEEL_FILES = ("pyproject.toml", "README.md", "LICENSE", "workflow/schemas", "workflow/scripts")
ON_REQUEST = {"umap-learn"}  # not in the lock: wheels of numba come late for a new Python
NOT_CALLED = {  # in an environment, functions that import more and that none of its commands calls
    "pool": {"encode_fair_esm", "encode_transformers", "_quiet_transformers", "locate_checkpoint", "_letters"},
    "models": {"_open_zstandard"},
    **{
        name: {
            *("open_model", "load_tokenizer", "_load_byte_pairs", "family_module", "load_published"),
            *("_open_zstandard", "_fit", "_predict_by_others"),
            *("_look_at", "_storage_object", "_plugin"),  # which the Snakefile calls, where Snakemake is
        }
        for name in ("tables", "report", "umap")
    },
}
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


def test_transformers_has_the_reference_of_every_family() -> None:
    (transformers,) = (requirement.specifier for requirement in ranges() if requirement.name == "transformers")
    assert "5.16.0" in transformers
    assert "5.15.1" not in transformers  # which has no esmc


def test_every_run_time_dependency_is_in_a_conda_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_hand = {"snakemake", "rich", "rocrate"}  # for commands that people run, not for rules
    wanted = {normal(Requirement(text).name) for text in project["dependencies"]} - by_hand
    named = {name for path in ENVIRONMENTS for name in conda_pins(path)}
    assert wanted == named - {"python", "cuda-version"} - ON_REQUEST


def test_the_conda_environments_name_only_living_channels() -> None:
    for path in ENVIRONMENTS:
        assert yaml.safe_load(path.read_text())["channels"] == ["conda-forge", "nodefaults"]


def imported(path: Path, ignored: set[str], seen: set[Path]) -> set[str]:
    """Packages that a file imports, itself or through the files of Holdfast that it imports.

    What a function imports counts, but for the functions ``ignored``, which no command of the environment calls.
    """
    seen.add(path)
    names: set[str] = set()
    files: set[Path] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in ignored:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            files |= {base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)}
            if path.name == "registry.py" and node.module == "encoder":  # which finds the families by name
                files |= {path.with_name(f"{family}.py") for family in FAMILIES}
    for file in {file for file in files if file.exists()} - seen:
        names |= imported(file, ignored, seen)
    return names - set(sys.stdlib_module_names)


def test_an_environment_holds_what_its_rules_import_and_nothing_else() -> None:
    """A rule calls one command; what that needs is what its function in ``cli.py`` imports."""
    needed: dict[str, set[str]] = {}
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for text in re.split(r"(?m)^ *(?:rule|checkpoint)\b", rules.read_text())[1:]:
            commands = re.findall(r"\{input\.holdfast:q\} ([a-z-]+)", text)
            environments = re.findall(r'"../../envs/(\w+)\.yaml"', text)
            assert len(commands) == ("shell:" in text) == bool(environments), text
            for command, environment in product(commands, environments):
                others = {function.__name__ for name, (function, _) in COMMANDS.items() if name != command}
                names = imported(Path(cli.__file__), others | NOT_CALLED[environment], set())
                needed.setdefault(environment, set()).update(IMPORT_NAMES.get(name, name) for name in names)
    needed["pool"].remove("triton")  # which pytorch-gpu brings
    needed["models"].discard("triton")
    needed["report"].remove("umap-learn")  # imported where it is asked for, in the environment umap
    assert {name: {normal(package) for package in found} for name, found in needed.items()} == {
        path.stem: set(conda_pins(path)) - {"python", "cuda-version"} for path in ENVIRONMENTS
    }


def test_every_extra_is_what_the_lock_pins_where_it_does() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"report", "slurm", "umap", "anndata"} <= extras.keys()
    for requirement in (Requirement(text) for texts in extras.values() for text in texts):
        version = lock().get(normal(requirement.name))
        assert version is None or version in requirement.specifier, requirement


@pytest.mark.parametrize("name", ["Dockerfile", "holdfast.def"])
def test_a_container_is_built_from_the_wheel_with_the_versions_of_the_lock(name: str) -> None:
    """Both definitions copy what a wheel is built of, and those files are there and enough (tests/test_release.py)."""
    text = (ROOT / "envs" / name).read_text()
    lines = [line.removeprefix("COPY").split() for line in text.splitlines() if " /opt/holdfast/" in line]
    files = {word for words in lines if words[-1].startswith("/opt/") for word in words[:-1] if word[0].isalpha()}
    assert {*WHEEL_FILES, "envs/lock.txt"} == {file for file in files if (ROOT / file).exists()}
    assert "pip wheel --no-cache-dir --no-deps --wheel-dir /opt/wheel /opt/holdfast" in text
    assert "--constraint /opt/holdfast/lock.txt /opt/wheel/holdfast-*.whl" in text
    for tool in ("apt-get update", "apt-get install --yes --no-install-recommends gcc libc6-dev", "pip install "):
        assert tool in text
