"""One broken sample, or several, among good ones: the good ones are finished, and each broken one says why."""

import gzip

import pytest

from tests.workflow.conftest import DEMO, NewProject, Project, fasta, jobs, stop_free_sequence

GOOD = fasta({"one": stop_free_sequence(300, 1), "two": stop_free_sequence(301, 2)})
ZIPPED = gzip.compress((DEMO / "data" / "phage_heldout.fna").read_bytes(), mtime=0)
BROKEN = {
    "truncated": (ZIPPED[: len(ZIPPED) // 2], "the compressed file is damaged or cut short"),
    "binary": (b"\x7fELF\x02\x01\x01\0\xff\xfe\xfd" * 40, "not FASTA or FASTQ"),
    "duplicate": (fasta({"one": "ACGTACGT"}) * 2, "line 3, record 'one': the id is that of line 1 too"),
    "archive": (b"PK\3\4" + bytes(26) + b"one.fna", "is a zip archive or an Excel workbook; unpack it"),
}


def write_broken(some: Project) -> None:
    """Write the broken samples and two good ones, the first and the last."""
    some.write("data/first.fna", GOOD)
    some.write("data/last.faa", ">p\nMKV\n")
    for name, (content, _) in BROKEN.items():
        some.write(f"data/{name}.fna", content)
    between = [(name, f"data/{name}.fna") for name in BROKEN]
    some.write_sheet(("first", "data/first.fna"), *between, ("last", "data/last.faa", "proteins"))


@pytest.mark.parametrize("arguments", [(), ("--keep-going",)])
def test_broken_samples_leave_the_others_alone_and_run_again_when_mended(
    project: NewProject, arguments: tuple[str, ...]
) -> None:
    some = project()
    write_broken(some)
    run = some.run(*arguments)
    assert run.returncode != 0
    assert "Traceback" not in run.text
    embedded = [f"embed {name}" for name in ("first", *BROKEN, "last")]
    finished = ["collect first", "collect last", "list_failures", "summarize", "draw"]
    assert run.jobs == sorted(["pool", *embedded, *finished])
    said = f"holdfast: error: {len(BROKEN)} samples have failed: {', '.join(BROKEN)}; results/failures.tsv says why."
    assert said in run.text
    assert said in some.read("logs/check_samples.log")
    end = run.text[run.text.index("Failed (results/failures.tsv)") :].splitlines()
    for name, (_, message) in BROKEN.items():
        (line,) = [line for line in end if line.startswith(f"  {name}: ")]
        assert str(some.path(f"data/{name}.fna")) in line
        assert message in line
        assert not some.path(f"results/{name}/embeddings.h5").exists()
    assert some.path("results/first/embeddings.h5").exists()
    assert some.path("results/last/embeddings.h5").exists()
    summary = some.table("summary.tsv")
    assert summary["sample"].tolist() == ["first", *BROKEN, "last"]
    assert summary["state"].tolist() == ["done", *["failed"] * len(BROKEN), "done"]
    assert summary["rows"].tolist() == ["12", *[""] * len(BROKEN), "1"]
    failures = some.table("failures.tsv")
    assert failures["sample"].tolist() == list(BROKEN)
    for reason, (name, (_, message)) in zip(failures["reason"], BROKEN.items(), strict=True):
        assert f"data/{name}.fna" in reason
        assert message in reason
    assert some.processes_left() == []

    for name in BROKEN:
        some.write(f"data/{name}.fna", GOOD)
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs(*BROKEN)
    assert some.table("failures.tsv").empty
    assert some.table("summary.tsv")["rows"].tolist() == ["12"] * 5 + ["1"]
    assert some.run().jobs == []


def test_without_a_sample_to_train_with_nothing_is_called_and_the_report_is_made(project: NewProject) -> None:
    some = project()
    for seed, name in enumerate(("virus", "other", "unknown")):
        some.write(f"data/{name}.fna", fasta({f"{name}{n}": stop_free_sequence(600, 9 * seed + n) for n in range(4)}))
    some.write("data/virus.fna", BROKEN["duplicate"][0])
    labels = {"virus": "virus", "other": "non-viral", "unknown": ""}
    some.write_sheet(*((name, f"data/{name}.fna", "contigs", label) for name, label in labels.items()))
    run = some.run()
    assert run.returncode != 0
    finished = ["collect other", "collect unknown", "list_failures", "summarize", "draw"]
    assert run.jobs == sorted(["pool", *(f"embed {name}" for name in labels), *finished])
    assert "1 sample has failed: virus" in run.text
    assert some.table("summary.tsv")["state"].tolist() == ["failed", "done", "done"]
    some.write("data/virus.fna", fasta({f"v{number}": stop_free_sequence(600, 99 + number) for number in range(4)}))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("virus", called=["unknown"], once=["train"])
