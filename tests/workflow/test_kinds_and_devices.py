"""Kinds of their own, devices, precision, places: the ways to run that need no other project than a small one."""

from pathlib import Path
from typing import Any

import numpy as np
from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import MEANS, NewProject, embedded, fasta, jobs, stop_free_sequence

PROTEINS = {"p1": "MKVLAAGGIVA", "p2": "M", "p3": "WXYBZJ*", "p4": "ACDEFGHIKL" * 130}


def test_a_gpu_that_is_not_there_ends_the_run_and_proteins_need_esm2_alone_on_the_cpu(project: NewProject) -> None:
    some = project()
    model = some.models["esm2"]
    proteins: dict[str, Any] = {"models": {"esm2": model}, "precision": "fp32", "store_dtype": "float32"}
    some.configure(**proteins)
    some.write("data/p.faa", fasta(PROTEINS))
    some.write_sheet(*((name, "data/p.faa", "proteins") for name in ("p", "q", "r")))
    run = some.run("--resources", "gpu=1")
    assert run.returncode != 0
    assert run.jobs == []
    assert "Traceback" not in run.text
    reason = "1 GPU(s) asked for, but torch sees 0 CUDA device(s)"
    assert reason in some.read("logs/pool.0.log")
    assert run.text.count(reason) == 1, "the reason belongs on the terminal, once, not only into logs"
    assert some.processes_left() == []

    some.configure(**proteins, pool={"device": "cpu"})
    run = some.run("--resources", "gpu=1")
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("p", "q", "r")
    assert "loading esm2 on cpu" in some.read("logs/pool.0.log")
    found = read_embeddings(some.path("results/p/embeddings.h5"))
    assert found.ids == list(PROTEINS)
    assert list(found.matrices) == [MEANS["esm2"]]
    assert found.matrices[MEANS["esm2"]].dtype == np.float32
    assert found.attributes["matrices"][MEANS["esm2"]]["precision"] == "fp32"
    expected = embedded(
        some.path(model["weights"]).parent, "esm2", [sequence.rstrip("*") for sequence in PROTEINS.values()]
    )
    np.testing.assert_allclose(found.matrices[MEANS["esm2"]], expected, rtol=0, atol=1e-5)
    summary = some.table("summary.tsv")
    assert summary["precision"].tolist() == ["fp32"] * 3
    assert "CPU" in summary["devices"][0]


def test_dna_alone_needs_dnabert_s_alone_on_one_core(project: NewProject) -> None:
    some = project()
    model = some.models["dnabert_s"]
    some.configure(models={"dnabert_s": model})
    records = {"d1": stop_free_sequence(700, 4), "d2": "ACGTNNRY", "d3": "A"}
    some.write("data/d.fna", fasta(records))
    some.write_sheet(("d", "data/d.fna", "dna"))
    run = some.run(cores=1)
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("d")
    log = some.read("logs/pool.0.log")
    assert "working on the CPU" in log
    assert "loading dnabert_s on cpu" in log
    found = read_embeddings(some.path("results/d/embeddings.h5"))
    assert found.ids == list(records)
    assert list(found.matrices) == [MEANS["dnabert_s"]]
    assert found.matrices[MEANS["dnabert_s"]].dtype == np.float16
    expected = embedded(some.path(model["weights"]).parent, "dnabert_s", list(records.values()))
    np.testing.assert_allclose(found.matrices[MEANS["dnabert_s"]].astype(np.float32), expected, rtol=1e-3, atol=1e-3)


def test_directories_with_spaces_work_on_one_core(project: NewProject, checkout: Path) -> None:
    some = project("my data/a project", repository=checkout)
    names = ("contigs of a phage.fna", "b.fna")
    some.write(f"data/{names[0]}", fasta({"a": stop_free_sequence(300, 1), "b": stop_free_sequence(120, 2)}))
    some.write(f"data/{names[1]}", fasta({f"o{number}": stop_free_sequence(120, 9 + number) for number in range(4)}))
    some.write("data/v.fna", fasta({f"v{number}": stop_free_sequence(120, 20 + number) for number in range(4)}))
    some.configure(output_virnucpro=True)
    some.write_sheet(
        ("called", f"data/{names[0]}"),
        ("o", f"data/{names[1]}", "contigs", "non-viral"),
        ("v", "data/v.fna", "", "virus"),
    )
    run = some.run(cores=1)
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("called", "o", "v", called=["called"], once=["train"])
    assert some.table("called/contigs.tsv")["contig"].tolist() == ["a", "b"]
    assert some.path("results/called/virnucpro/prediction_results.txt").exists()
    assert some.run(cores=1).jobs == []
