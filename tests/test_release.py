"""What a release is made of: sdist and wheel, one version, workflows, an owner, an entry in the catalog."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from holdfast import __version__

from tests.test_environments import ENVIRONMENTS, WHEEL_FILES

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
OWNER = runpy.run_path(str(ROOT / ".github/owner.py"))
BUILD = "from setuptools.build_meta import build_sdist, build_wheel; import sys; {}(sys.argv[1])"


def copy(names: tuple[str, ...], target: Path) -> Path:
    """Some files and directories of the repository, elsewhere."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
            )
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def build(kind: str, source: Path, target: Path) -> Path:
    """Build with the packages that are here, without an environment of its own."""
    target.mkdir()
    subprocess.run([sys.executable, "-c", BUILD.format(f"build_{kind}"), target], cwd=source, check=True, timeout=300)
    (made,) = target.iterdir()
    return made


@pytest.mark.thorough
def test_sdist_and_wheel_bring_the_command(tmp_path: Path) -> None:
    """Both from the files that a container copies; the wheel of the sdist is the same."""
    source = copy(WHEEL_FILES, tmp_path / "source")
    archive = build("sdist", source, tmp_path / "sdist")
    wheel = build("wheel", source, tmp_path / "wheel")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    again = build("wheel", tmp_path / f"unpacked/holdfast-{__version__}", tmp_path / "again")
    assert wheel.name == again.name == f"holdfast-{__version__}-py3-none-any.whl"
    names = sorted(zipfile.ZipFile(wheel).namelist())
    assert names == sorted(zipfile.ZipFile(again).namelist())
    package = (ROOT / "workflow/scripts/holdfast.files").read_text().split()
    assert {name for name in package if name != "entry.py"} <= set(names)
    assert {f"holdfast/schemas/{path.name}" for path in (ROOT / "workflow/schemas").iterdir()} <= set(names)

    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "all.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    python = tmp_path / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--ignore-installed", wheel], check=True, timeout=300)
    command = tmp_path / "venv/bin/holdfast"
    assert subprocess.check_output([command, "--version"], text=True, cwd=tmp_path) == f"holdfast {__version__}\n"
    (tmp_path / "a.fna").write_text(">a\n" + "ATGGCC" * 50 + "\n")
    frames = [command, "frames", "a.fna", "--chunk-length", "300", "--nucleotides", "n.fna", "--proteins", "p.faa"]
    said = subprocess.check_output(frames, text=True, cwd=tmp_path, timeout=300)
    assert said == "1 records, 1 chunks, 6 stop-free frames\n"


def test_one_version_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == __version__
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {__version__}\n\n- ")
    assert json.loads((ROOT / ".github/release-please-manifest.json").read_text()) == {".": __version__}
    settings = json.loads((ROOT / ".github/release-please.json").read_text())["packages"]["."]
    assert settings["release-type"] == "simple"
    for file in settings["extra-files"]:
        text = (ROOT / file["path"]).read_text()
        assert ("x-release-please-" in text) == (file["type"] == "generic")
        assert all(__version__ in line for line in text.splitlines() if line.endswith("x-release-please-version"))
    for name in ("README.md", "docs/module.md", "docs/offline.md", ".github/owner.py"):
        assert set(re.findall(r"\b(?:v|holdfast-)(\d+\.\d+\.\d+)\b", (ROOT / name).read_text())) <= {__version__}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_of_github_is_one(path: Path) -> None:
    """By its YAML, since nothing here runs it: jobs, steps, files and scripts that are there."""
    content = yaml.safe_load(path.read_text())
    assert set(content) - {True} <= {"name", "jobs", "permissions"}  # `on` is YAML for true
    assert content[True]
    for job in content["jobs"].values():
        assert {"runs-on", "steps"} <= set(job) <= {"runs-on", "steps", "strategy", "needs", "if", "outputs"}
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(content["jobs"])
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1
            assert set(step) <= {"id", "uses", "run", "with", "env", "shell"}
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
            assert "${{" not in step.get("run", ""), "a script takes what others write by env alone"
            checked = subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, check=False)
            assert checked.returncode == 0
    for name in re.findall(r"(?:envs|\.github)/[\w./-]+\w", path.read_text()):
        assert (ROOT / name).exists() or "$" in name or name == "envs/", name


def test_every_environment_is_solved_by_a_workflow() -> None:
    content = yaml.safe_load((ROOT / ".github/workflows/environments.yml").read_text())
    assert content["jobs"]["conda"]["strategy"]["matrix"]["environment"] == [path.stem for path in ENVIRONMENTS]
    assert "--directory .test --cores 2 --sdm conda" in content["jobs"]["workflow"]["steps"][-1]["run"]


def test_an_owner_is_written_everywhere_and_taken_out_again(tmp_path: Path) -> None:
    names = (*OWNER["PLACES"], ".github/owner.py", ".github/owner")
    copy(names, tmp_path)
    before = {name: (tmp_path / name).read_text() for name in names}
    assert before[".github/owner"] == "", "the texts of the repository itself need no owner until it has one"

    def write(owner: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, tmp_path / ".github/owner.py", owner]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for owner in ("lab-of-phages", "other"):
        assert write(owner).returncode == 0
        for name in OWNER["PLACES"]:
            text = (tmp_path / name).read_text()
            assert f"{owner}/holdfast" in text, name
            assert "lab-of-phages" not in text or owner == "lab-of-phages"
    assert tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"] == {
        "Repository": "https://github.com/other/holdfast"
    }
    assert yaml.safe_load((tmp_path / "CITATION.cff").read_text())["repository-code"].endswith("/other/holdfast")
    refused = write("no owner")
    assert (refused.returncode, "not a name of GitHub's" in refused.stderr) == (1, True)
    assert write("").returncode == 0
    assert {name: (tmp_path / name).read_text() for name in names} == before


def test_no_text_has_a_placeholder_for_an_owner() -> None:
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/Snakefile")]
    assert [path.name for path in texts if re.search(r"OWNER/|<owner>", path.read_text())] == []


def test_the_catalog_finds_what_it_shows() -> None:
    """Its generator reads what is below ``usage``, its pages what is true of the deployment and the schema."""
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"] == {"desc": None, "flags": None}
    stacks = usage["software-stack-deployment"]
    assert stacks == {"conda": True, "apptainer": False, "apptainer+conda": False, "report": True}
    assert usage["report"] is True
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    assert "$ref" not in json.dumps(schema)
    rows = []

    def render(properties: dict[str, dict[str, object]]) -> None:
        """As the catalog does: names, types, descriptions, defaults, and whatever lies below ``properties``."""
        for name, details in properties.items():
            rows.append((name, details.get("description", "")))
            render(details.get("properties", {}))  # type: ignore[arg-type]

    render(schema["properties"])
    assert [name for name, description in rows if not description] == []
    assert {name for name, _ in rows} >= {"samples", "models", "classifier", "replicas", "preset"}
