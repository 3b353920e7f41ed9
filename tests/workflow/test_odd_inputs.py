"""What people type and hand over, as they do: odd paths, odd sheets, odd values, odd letters; a run, or one line."""

import json
import subprocess
import sys
from pathlib import Path

import zstandard
from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import REPOSITORY, TIMEOUT_S, WIDTHS, NewProject, fasta, stop_free_sequence

PROTEINS = {"p1": "MKVLAAGIVGLLLAQWERTY", "p2": "MKKLLPTAAAGLLLLAAQPAMA"}
CONTIGS = {"good": stop_free_sequence(600, 1), "gaps": f"{stop_free_sequence(300, 2)}-.-{stop_free_sequence(300, 3)}"}


def test_braces_in_every_path_that_may_have_them(project: NewProject) -> None:
    """In FASTA files, sheet, spool and working directory; nothing of it is a pattern."""
    some = project("work {sample} {{x}}")
    for name in ("br{a}ces", "d{{b}}", "{sample}"):
        some.write(f"data/{name}.faa", fasta(PROTEINS))
    some.write(
        "config/my {sheet}.tsv",
        "sample\tfasta\tkind\na\tdata/br{a}ces.faa\tproteins\nb\tdata/d{{b}}.faa\tproteins\nc\tdata/{sample}.faa\tproteins\n",
    )
    spool = some.path("the {spool}")
    some.configure(samples="config/my {sheet}.tsv", pool={"spool": str(spool)}, models={"esm2": some.models["esm2"]})
    run = some.run()
    assert run.returncode == 0, run.text
    for name in "abc":
        assert read_embeddings(some.path(f"results/{name}/embeddings.h5")).ids == list(PROTEINS)
    assert some.table("summary.tsv")["sample"].tolist() == ["a", "b", "c"]
    assert (spool / "done").is_dir()
    assert some.run().jobs == []
    some.write("data/br{a}ces.faa", fasta({"new": "MKV"}))
    assert {name for name in some.run().jobs if name.startswith("embed")} == {"embed a"}


def test_a_sheet_from_a_spreadsheet_and_values_from_the_command_line(project: NewProject) -> None:
    """Semicolons, quotes, upper case, a home directory; `--config` hands what stands in braces over as text."""
    some = project()
    home = some.path("home")
    home.mkdir()
    some.write("home/a.faa", fasta(PROTEINS))
    some.write("b.faa.zst", zstandard.compress(fasta(PROTEINS).encode()))
    some.write(
        "config/samples.csv",
        '\ufeff# from a spreadsheet;;\r\n"Sample";"FASTA";"Kind";;\r\n"1";"~/a.faa";"Proteins";;\r\n'
        '"2";$B/b.faa.zst;proteins\r\n',
    )
    some.configure(samples="config/samples.csv", models={"esm2": some.models["esm2"]}, pool=None, method=None)
    given = ["--config", "pool={threads: 1, cpu_workers: 1, max_tasks_per_worker: null}", "classifier=None"]
    run = some.run(*given, HOME=str(home), B=str(some.directory))
    assert run.returncode == 0, run.text
    vectors = [read_embeddings(some.path(f"results/{name}/embeddings.h5")).ids for name in "12"]
    assert vectors == [list(PROTEINS)] * 2


def test_a_wrong_entry_of_a_list_is_named_and_nothing_runs(project: NewProject) -> None:
    some = project()
    some.write("data/a.faa", fasta(PROTEINS))
    entries: list[dict[str, object]] = [
        {"sample": 1, "fasta": "data/a.faa", "kind": "proteins", "label": None},
        {"sample": "b", "fasta": float("nan"), "kind": "proteins"},
        {"sample": "c", "fasta": "data/a.faa", "kind": float("inf")},
    ]
    some.configure(samples=entries)
    run = some.run()
    assert run.returncode != 0
    assert "Traceback" not in run.text
    assert "the list 'samples' of the config is not valid:" in run.text
    assert "entry 2: 'fasta' is missing" in run.text
    assert "entry 3: kind: a number that is not finite" in run.text
    assert run.jobs == []
    some.configure(samples=entries[:1], models={"esm2": some.models["esm2"]})
    run = some.run()
    assert run.returncode == 0, run.text
    assert read_embeddings(some.path("results/1/embeddings.h5")).ids == list(PROTEINS)


def test_a_record_with_other_letters_has_a_status_and_its_sample_goes_on(
    project: NewProject, classifiers: Path
) -> None:
    some = project()
    other = {"x": "ACGTXXXX", "star": "ACGT*", "protein": "MKVLE"}
    some.write("data/c.fna", fasta({**CONTIGS, **other, "last": CONTIGS["good"]}))
    some.write("data/p.faa", fasta({**PROTEINS, "digit": "MK1"}))
    some.write("data/none.fna", fasta(other))
    some.write_sheet(
        ("c", "data/c.fna"), ("p", "data/p.faa", "proteins"), ("d", "data/c.fna", "dna"), ("n", "data/none.fna")
    )
    some.configure(classifier=f"{classifiers}/500_model.safetensors")
    run = some.run()
    assert run.returncode == 0, run.text
    reasons = {
        "x": "'X' in column 5 of line 6 is no IUPAC nucleotide letter",
        "star": "'*' in column 5 of line 8 is no IUPAC nucleotide letter",
        "protein": "'L' in column 4 of line 10 is no IUPAC nucleotide letter",
    }
    for sample in ("c", "d"):
        records = some.table(f"{sample}/records.tsv").set_index("record")
        assert records["status"].to_dict() == {
            "good": "ok",
            "gaps": "ok",
            **dict.fromkeys(other, "bad_letters"),
            "last": "ok",
        }
        assert records["reason"][[*other]].to_dict() == reasons
        assert records["length"][[*other]].tolist() == ["8", "5", "5"]
        assert records["residues_used"][[*other]].tolist() == ["0", "0", "0"]
    assert some.table("p/records.tsv")["status"].tolist() == ["ok", "ok", "bad_letters"]
    assert read_embeddings(some.path("results/p/embeddings.h5")).ids == list(PROTEINS)
    assert some.table("c/contigs.tsv")["contig"].tolist() == ["good", "gaps", *other, "last"]
    assert some.table("summary.tsv").set_index("sample")["bad_letters"].to_dict() == {
        "c": "3",
        "p": "1",
        "d": "3",
        "n": "3",
    }
    assert read_embeddings(some.path("results/n/embeddings.h5")).ids == []
    warnings = json.loads(some.read("results/c/receipt.json"))["warnings"]
    assert warnings == ["not all records were embedded as they are (3 bad_letters); the table of records says which"]


def test_no_command_of_a_run_names_each_of_its_samples(project: NewProject) -> None:
    """Linux takes 128 KiB in one argument of a program, here the command of a shell: less than 4,000 samples."""
    some = project()
    some.write("data/a.fna", fasta(CONTIGS))
    labels = {"sampleA": "virus", "sampleB": "virus", "sampleC": "non-viral", "sampleD": "non-viral", "sampleE": ""}
    some.write_sheet(*((name, "data/a.fna", "contigs", label) for name, label in labels.items()))
    run = some.run("--printshellcmds")
    assert run.returncode == 0, run.text[-3000:]
    commands = [line for line in run.text.splitlines() if "HOLDFAST_PYTHON" in line]
    for word in ("submit", "train", "classify", "summarize", "draw"):
        assert any(f" {word} " in line for line in commands)
    for line in commands:
        assert sum(name in line for name in labels) <= 1, line


def test_a_pth_for_other_models_is_refused_before_anything_is_embedded(project: NewProject) -> None:
    some = project()
    some.write("data/a.fna", fasta(CONTIGS))
    some.write_sheet(("a", "data/a.fna"))
    publish = [sys.executable, "-W", "ignore", REPOSITORY / "tests/results/virnucpro.py", "10", some.path("data")]
    subprocess.run(publish, check=True, timeout=TIMEOUT_S)
    some.configure(classifier="data/500_model.pth")
    run = some.run()
    assert run.returncode != 0
    assert "Traceback" not in run.text
    assert f"takes 10 values, but the config gives {sum(WIDTHS.values())}" in run.text
    assert not [name for name in run.jobs if name.startswith(("embed", "collect", "classify"))]
    assert not some.path("results/a/receipt.json").exists()
