"""Where results come from, and how others read them: two runs, of which the first fails over one sample.

The blocks of code in docs/embeddings-file.md that read results are executed as they stand there, in the directory of
these runs.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np
import pytest
from holdfast.models.registry import read_prepared
from holdfast.results.embeddings import read_embeddings
from holdfast.results.export import dataset_name
from holdfast.run.crate import PROFILE
from holdfast.run.provenance import CRATE
from holdfast.spool.job import read_receipt
from rocrate.rocrate import ROCrate

from tests.workflow.conftest import DEMO, MEANS, REPOSITORY, SCRIPTS, TIMEOUT_S, Project, fasta

PAGE = (REPOSITORY / "docs/embeddings-file.md").read_text().partition("\n## Reading it\n")[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ODD_IDS = ["a/b", "a%2Fb", "..", ".", "ä|b"]
SHEET = [
    ("phage_proteins", "data/phage_proteins.faa", "proteins"),
    ("bacterium_heldout", "data/bacterium_heldout.fna"),
    ("odd", "data/odd.faa", "proteins"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, models: Path, classifiers: Path) -> Iterator[Project]:
    """A project after a run in which sample ``odd`` was broken, and one after its repair."""
    some = Project(tmp_path_factory.mktemp("provenance") / "project", models)
    some.configure(classifier=str(classifiers / "500_model.safetensors"), export="uniprot")
    for name in ("phage_proteins.faa", "bacterium_heldout.fna"):
        shutil.copy(DEMO / "data" / name, some.path("data"))
    some.write("data/odd.faa", ">a\nMK\n>a\nMK\n")
    some.write_sheet(*SHEET)
    failed = some.run("--keep-going")
    assert failed.returncode != 0
    assert "export bacterium_heldout" in failed.jobs, "rule all asks for it"
    shutil.copy(some.path("results/run.json"), some.path("first.json"))
    some.write("data/odd.faa", fasta({name: "MKVLAAGGIVA"[: 4 + number] for number, name in enumerate(ODD_IDS)}))
    mended = some.run()
    assert mended.returncode == 0, mended.text
    yield some
    assert some.processes_left() == []


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(some: Project, name: str = "results/run.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(some.read(name))
    return content


def test_a_record_says_what_ran_where_on_what_and_with_what(runs: Project) -> None:
    first = record(runs, "first.json")
    assert first["format"] == "holdfast-run"
    assert (first["host"], first["directory"]) == (os.uname().nodename, str(runs.directory))
    assert first["command"].endswith("--keep-going")
    assert first["began"] < first["ended"]
    assert first["seconds"] > 0
    assert first["config"]["store_dtype"] == "float16"
    assert first["classifier_sha256"] == sha256(Path(first["config"]["classifier"]))
    assert first["synthetic_weights"] == ["dnabert_s", "esm2"]
    for known in first["models"].values():
        assert known["weights_sha256"] == read_prepared(known["directory"]).weights_sha256
    package = REPOSITORY / "workflow/scripts/holdfast"
    names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    code = b"".join((package / name).read_bytes() for name in names)
    assert first["software"]["holdfast_sha256"] == hashlib.sha256(code).hexdigest()
    (pool,) = first["pools"].values()
    assert pool["software"]["holdfast_sha256"] == first["software"]["holdfast_sha256"]
    assert {"python", "torch", "numpy"} <= pool["software"].keys()
    assert (pool["host"], pool["precision"], pool["devices"]) == (first["host"], "fp32", "CPU, 2 threads")
    assert 0 < pool["device_busy"] <= 1
    assert 0 < pool["device_s"] <= pool["ready_s"] < first["seconds"]
    states = {name: sample["state"] for name, sample in first["samples"].items()}
    assert states == {"phage_proteins": "done", "bacterium_heldout": "done", "odd": "failed"}
    assert "odd.faa, line 3, record 'a'" in first["samples"]["odd"]["error"]
    assert first["reused"] == {"samples": 0, "vectors": 0, "cached": 0, "origins": []}
    assert "results/failures.tsv" in first["outputs"]
    assert "results/summary.tsv" in first["outputs"]


def test_the_next_record_says_what_it_took_over_and_none_is_forgotten(runs: Project) -> None:
    first, second = record(runs, "first.json"), record(runs)
    kept = {path.name for path in runs.path("results/runs").iterdir()}
    assert kept == {f"{each['run']}.json" for each in (first, second)}
    assert record(runs, f"results/runs/{first['run']}.json") == first
    states = {name: sample["state"] for name, sample in second["samples"].items()}
    assert states == {"phage_proteins": "reused", "bacterium_heldout": "reused", "odd": "done"}
    assert second["reused"] == {"samples": 2, "vectors": 0, "cached": 0, "origins": []}
    assert second["samples"]["bacterium_heldout"]["run"] == first["run"]


def test_every_file_leads_to_its_record(runs: Project) -> None:
    first, second = record(runs, "first.json"), record(runs)
    for name, of in (
        ("bacterium_heldout/contigs.tsv", first),
        ("bacterium_heldout/frames.tsv", first),
        ("summary.tsv", second),
    ):
        assert of["outputs"][f"results/{name}"] == sha256(runs.path(f"results/{name}"))
    summary = runs.table("summary.tsv").set_index("sample")
    for name, path, *_ in SHEET:
        of = second if name == "odd" else first
        outcome = read_receipt(runs.path(f"results/{name}/receipt.json"))
        assert outcome is not None
        assert outcome.run == of["run"] == summary.loc[name, "run"]
        assert outcome.input_sha256 == of["samples"][name]["input_sha256"] == sha256(runs.path(path))
        attributes = read_embeddings(runs.path(f"results/{name}/embeddings.h5")).attributes
        assert attributes["job"] == outcome.job == of["samples"][name]["job"]
        assert attributes["input_sha256"] == outcome.input_sha256
        assert attributes["software"] == next(iter(of["pools"].values()))["software"]


def test_a_crate_of_the_results_leads_from_inputs_to_files_and_says_what_ran(runs: Project, tmp_path: Path) -> None:
    """Made in a copy of the results, as of results that were moved; no file is changed, moved or copied."""
    results = tmp_path / "moved"
    shutil.copytree(runs.path("results"), results)
    before = {path: sha256(path) for path in results.rglob("*") if path.is_file()}
    command = [sys.executable, "-W", "error", SCRIPTS / "entry.py", "crate", results, "--license"]
    done = subprocess.run(
        [*command, "https://spdx.org/licenses/CC0-1.0"], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{results / CRATE}\n", "")
    after = {path for path in results.rglob("*") if path.is_file()}
    assert after == before.keys() | {results / CRATE}
    assert {path: sha256(path) for path in before} == before

    made = ROCrate(results)
    first, second = record(runs, "first.json"), record(runs)
    assert made.root_dataset["conformsTo"].id == PROFILE
    files = [entity for entity in made.data_entities if "File" in entity.type]
    sizes = 0
    for entity in files:
        path = Path(unquote(urlsplit(entity.id).path)) if entity.id.startswith("file:") else results / entity.id
        assert path.is_file(), entity.id
        assert entity.get("sha256") in (None, sha256(path)), entity.id
        if "contentSize" in entity:
            assert int(entity["contentSize"]) == path.stat().st_size
            sizes += 1
    written = {name.removeprefix("results/") for of in (first, second) for name in of["outputs"]}
    wanted = {name for name in written if (results / name).exists()} | {f"{name}/embeddings.h5" for name, *_ in SHEET}
    assert len(wanted) == sizes > 5
    made_by = {of["run"]: made.get(f"#{of['run']}") for of in (first, second)}
    assert list(made.root_dataset["mentions"]) == list(reversed(made_by.values()))
    got = {run: {file.id for file in action["result"]} for run, action in made_by.items()}
    assert set.union(*got.values()) == wanted
    assert {"bacterium_heldout/contigs.tsv", "phage_proteins/embeddings.h5"} <= got[first["run"]]
    assert {"summary.tsv", "odd/embeddings.h5"} <= got[second["run"]]
    for of, samples in ((first, SHEET[:2]), (second, SHEET[2:])):
        action = made_by[of["run"]]
        assert (action["startTime"], action["endTime"]) == (of["began"], of["ended"])
        assert of["command"] in action["description"]
        read = {entity.id: entity for entity in action["object"]}
        for name, path, *_ in samples:
            assert read[runs.path(path).as_uri()]["sha256"] == of["samples"][name]["input_sha256"]
        assert json.loads(read[f"#config-{of['run']}"]["value"]) == of["config"]
        weights = {
            each["sha256"]: each["name"] for each in read.values() if "Synthetic weights" in each.get("name", "")
        }
        assert weights.keys() == {known["weights_sha256"] for known in of["models"].values()}
        assert "Synthetic weights: dnabert_s, esm2" in action["description"]
        (pool,) = of["pools"].values()
        assert action["instrument"]["sha256"] == of["software"]["holdfast_sha256"]
        versions = {each["name"]: each["softwareVersion"] for each in action["instrument"]["softwareRequirements"]}
        assert versions.items() >= {name: pool["software"][name] for name in ("python", "torch")}.items()
        assert versions["snakemake"] == of["software"]["snakemake"]
    assert "Synthetic weights: dnabert_s, esm2" in made.description
    assert made_by[first["run"]]["error"] == "no result of odd"
    assert made_by[second["run"]]["actionStatus"] == "http://schema.org/CompletedActionStatus"


def test_the_summary_shares_the_load_out_and_says_how_busy_the_device_was(runs: Project) -> None:
    summary = runs.table("summary.tsv").set_index("sample")
    members = summary.loc[["phage_proteins", "bacterium_heldout"]]
    costs = members[["load_s", "load_share_s", "device_s"]].astype(float)
    assert costs["load_share_s"].sum() == pytest.approx(costs["load_s"].iloc[0], abs=2e-3)
    assert costs["load_share_s"].idxmax() == costs["device_s"].idxmax()
    assert summary.loc["odd", "load_share_s"] == summary.loc["odd", "load_s"]
    for run, names in ((record(runs, "first.json"), members.index), (record(runs), ["odd"])):
        (pool,) = run["pools"].values()
        assert {float(busy) for busy in summary.loc[list(names), "device_busy"]} == {pool["device_busy"]}
    for name, row in summary.iterrows():
        outcome = read_receipt(runs.path(f"results/{name}/receipt.json"))
        assert outcome is not None
        assert outcome.counts["computed_tokens"] == int(row["tokens"])
        assert float(row["tokens_per_s"]) == round(int(row["tokens"]) / outcome.seconds["device_s"])


def test_the_export_has_one_dataset_an_id(runs: Project) -> None:
    assert dataset_name("a/b") == "a%2Fb"
    for sample, model in (("odd", "esm2"), ("bacterium_heldout", "esm2"), ("bacterium_heldout", "dnabert_s")):
        found = read_embeddings(runs.path(f"results/{sample}/embeddings.h5"))
        with h5py.File(runs.path(f"results/{sample}/uniprot/{model}/per-protein.h5")) as file:
            assert len(file) == len(found.ids) > 0
            assert bool(file.attrs["synthetic"])
            assert (file.attrs["model"], file.attrs["job"]) == (model, found.attributes["job"])
            for identifier, vector in zip(found.ids, found.matrices[MEANS[model]], strict=True):
                dataset = file[dataset_name(identifier)]
                assert dataset.attrs["original_id"] == identifier
                assert dataset.dtype == np.float16
                np.testing.assert_array_equal(dataset[:], vector)
    with h5py.File(runs.path("results/odd/uniprot/esm2/per-protein.h5")) as file:
        assert set(file) == {"a%2Fb", "a%252Fb", "..", "%2E", "ä|b"}


@pytest.mark.parametrize("block", [code for language, code in BLOCKS if language == "python"])
def test_the_python_of_the_page_works_as_it_stands_there(runs: Project, block: str) -> None:
    if "import anndata" in block and importlib.util.find_spec("anndata") is None:
        pytest.skip("anndata is not installed, being no dependency; .ci/run installs it")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=runs.directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"```text\n{done.stdout}```" in PAGE


@pytest.mark.parametrize("block", [code for language, code in BLOCKS if language == "r"])
def test_the_r_of_the_page_works_as_it_stands_there(runs: Project, block: str) -> None:
    library = re.search(r"library\((\w+)\)", block)
    assert library is not None
    rscript = shutil.which("Rscript")
    if rscript is None or subprocess.run([rscript, "-e", library[0]], capture_output=True, check=False).returncode:
        pytest.skip(f"no R with {library[1]} here")
    done = subprocess.run(
        [rscript, "-e", block], cwd=runs.directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"```text\n{done.stdout}```" in PAGE


def test_the_page_has_all_it_promises() -> None:
    code = [text for language, text in BLOCKS if language in ("python", "r")]
    for wanted in ("import h5py", "import pandas", "import anndata", "library(rhdf5)", "library(hdf5r)", "sklearn"):
        assert any(wanted in text for text in code), wanted


def test_the_record_of_a_killed_run_is_written_by_the_next_which_leaves_none_itself_if_it_does_nothing(
    runs: Project,
) -> None:
    second = record(runs)
    kept = {path.name for path in runs.path("results/runs").iterdir()}
    dead = subprocess.Popen(["true"])
    dead.wait()
    killed = runs.path(f".holdfast/runs/{os.uname().nodename}-{dead.pid}")
    killed.mkdir(parents=True)
    names = ("format", "format_version", "host", "directory", "results", "began", "config")
    start = {name: second[name] for name in names}
    start |= {"run": killed.name, "models": {}, "samples": {"odd": {}}, "pending": ["odd"], "ended": None}
    (killed / "start.json").write_text(json.dumps(start))
    of_odd = runs.path("results/odd/receipt.json")
    outcome, before, when = read_receipt(of_odd), of_odd.read_bytes(), of_odd.stat().st_mtime_ns
    assert outcome is not None
    of_odd.write_text(json.dumps({**json.loads(before), "run": killed.name}))
    for path in (of_odd, killed / "start.json"):
        os.utime(path, ns=(when, when))
    run = runs.run()
    assert (run.returncode, run.jobs) == (0, [])
    assert not killed.exists()
    assert {path.name for path in runs.path("results/runs").iterdir()} == {*kept, f"{killed.name}.json"}
    left = record(runs, f"results/runs/{killed.name}.json")
    assert (left["ended"], left["samples"]["odd"]["state"], left["samples"]["odd"]["job"]) == (
        None,
        "done",
        outcome.job,
    )
    of_odd.write_bytes(before)
    os.utime(of_odd, ns=(when, when))
