"""Sites with rules of their own: no network where the work is done, no conda, and workflows deployed by snakedeploy."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from holdfast.models.registry import read_prepared
from holdfast.results.embeddings import read_embeddings

from tests.models import checkpoints
from tests.models.hub import Hub
from tests.workflow.conftest import REPOSITORY, TIMEOUT_S, NewProject, jobs

BIN = Path(sys.executable).parent

# In the place of apptainer, of which there is no engine here: notes what it is asked for, and runs it with this python.
APPTAINER = f"""#!/bin/bash
if [ "$1" = --version ]; then echo "apptainer version 1.3.4"; exit; fi
echo "$*" >> "$APPTAINER_LOG"
while [ "$1" != "$IMAGE" ]; do shift; done
shift
PATH={BIN}:$PATH exec "$@"
"""


def test_what_was_prepared_with_a_network_runs_without_one_in_a_container(
    project: NewProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "apptainer").write_text(APPTAINER)
    (programs / "apptainer").chmod(0o755)
    some = project()
    image, log = some.write("holdfast.sif", "an image"), tmp_path / "apptainer.log"
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("IMAGE", str(image))
    monkeypatch.setenv("APPTAINER_LOG", str(log))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    published = checkpoints.write_hugging_face_esm(tmp_path / "published", checkpoints.fair_esm_state(), binary=True)
    some.configure(models={"esm2": {"weights": "someone/esm2"}}, container=str(image))
    some.write("data/p.faa", ">p\nMKVLA\n")
    some.write_sheet(("p", "data/p.faa", "proteins"))
    (some.directory / "profile").mkdir()
    some.write("profile/config.yaml", 'software-deployment-method: apptainer\napptainer-args: "--nv"\n')
    arguments = ("--profile", str(some.path("profile")))

    with Hub({"someone/esm2": published}) as hub:
        run = some.run("prepare", *arguments, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.endpoint)
        assert run.returncode == 0, run.text
        assert run.jobs == ["prepare", "prepare_weights esm2"]
        assert "pytorch_model.bin" in hub.downloaded
        asked = len(hub.downloaded)
        assert not some.path("results").exists()
        run = some.run(*arguments, HF_HUB_OFFLINE="1", HF_ENDPOINT=hub.endpoint)
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("p")
    assert len(hub.downloaded) == asked
    found = read_embeddings(some.path("results/p/embeddings.h5"))
    digest = read_prepared(some.path("resources/esm2")).weights_sha256
    assert [known["weights_sha256"] for known in found.attributes["matrices"].values()] == [digest]
    commands = log.read_text().splitlines()
    called = [re.search(r"scripts/entry\.py ([\w-]+)", line) for line in commands]
    wanted = ["check-samples", "collect", "draw", "list-failures", "prepare", "serve", "submit", "summarize"]
    assert sorted(match[1] for match in called if match) == wanted
    assert len(commands) == len(wanted)
    assert all(line.startswith("exec ") and " --nv " in line and f" {image} bash -c " in line for line in commands)


def test_snakedeploy_deploys_a_tag_whose_dry_run_works(
    tmp_path: Path, models: Path, publish: Callable[[Path], None]
) -> None:
    """``https://github.com/OWNER/holdfast`` is a repository of the files that are here."""
    source = tmp_path / "source"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "workflow", "envs", "config"]
    listed += ["LICENSE", ".snakemake-workflow-catalog.yml"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in {name for name in names.split("\0") if name and (REPOSITORY / name).exists()}:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    publish(source)

    deployed = tmp_path / "deployed"
    command = [BIN / "snakedeploy", "deploy-workflow", "https://github.com/OWNER/holdfast", deployed, "--tag", "v0.2.0"]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    assert sorted(path.name for path in deployed.iterdir()) == ["LICENSE", "config", "workflow"]
    assert (deployed / "config" / "README.md").read_text() == (REPOSITORY / "config" / "README.md").read_text()

    content = yaml.safe_load((deployed / "config" / "config.yaml").read_text())
    content["models"] = {model: {"weights": str(models / model)} for model in content["models"]}
    (deployed / "config" / "config.yaml").write_text(yaml.safe_dump(content))
    sheet = deployed / "config" / "samples.tsv"
    header = sheet.read_text().splitlines()[0]
    sheet.write_text(f"{header}\np\tp.faa\tproteins\t\n")
    (deployed / "p.faa").write_text(">p\nMKV\n")
    dry = [BIN / "snakemake", "-d", deployed, "-s", deployed / "workflow/Snakefile", "--cores", "1", "--dry-run"]
    run = subprocess.run([str(part) for part in dry], capture_output=True, text=True, timeout=TIMEOUT_S)
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    for rule in ("rule pool", "rule embed_0", "checkpoint list_failures", "rule all"):
        assert f"{rule}:" in text


def test_the_catalog_shows_the_workflow_as_standardized() -> None:
    """What the catalog asks of a repository: https://github.com/snakemake/snakemake-workflow-catalog."""
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert usage["software-stack-deployment"]["conda"]
    readme = (REPOSITORY / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    for name in ("config/README.md", "config/config.yaml", "workflow/Snakefile"):
        assert (REPOSITORY / name).is_file()
    assert [*(REPOSITORY / "workflow/rules").glob("*.smk")]
