"""The conda environments, the lock and the ranges of pyproject.toml say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPI_NAMES = {"pytorch": "torch"}
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
        name, version = re.fullmatch(r"([\w-]+)>?=([\d.]+)", entry).groups()
        pins[normal(PYPI_NAMES.get(name, name))] = version
    return pins


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_a_conda_environment_pins_what_the_lock_pins(path: Path) -> None:
    pins = conda_pins(path)
    assert pins.pop("python") == "3.11"
    assert pins
    assert pins == {name: lock()[name] for name in pins}


def test_the_lock_satisfies_the_ranges_of_the_project() -> None:
    pinned = lock()
    for requirement in ranges():
        assert pinned[normal(requirement.name)] in requirement.specifier, requirement


def test_every_run_time_dependency_is_in_a_conda_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_hand = {"snakemake", "rich"}  # for commands that people run, not for rules
    wanted = {normal(Requirement(text).name) for text in project["dependencies"]} - by_hand
    assert wanted == {name for path in ENVIRONMENTS for name in conda_pins(path)} - {"python"}


def test_the_conda_environments_name_only_living_channels() -> None:
    for path in ENVIRONMENTS:
        assert yaml.safe_load(path.read_text())["channels"] == ["conda-forge", "bioconda", "nodefaults"]
