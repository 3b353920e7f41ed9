"""One broken sample, or several, among good ones: the good ones are finished, and each broken one says why."""

import gzip

from tests.workflow.conftest import DEMO, NewProject, fasta, jobs, stop_free_sequence

GOOD = fasta({"one": stop_free_sequence(300, 1), "two": stop_free_sequence(301, 2)})
ZIPPED = gzip.compress((DEMO / "data" / "phage_heldout.fna").read_bytes(), mtime=0)
BROKEN = {
    "truncated": (ZIPPED[: len(ZIPPED) // 2], "the compressed file is damaged or cut short"),
    "binary": (b"\x7fELF\x02\x01\x01\0\xff\xfe\xfd" * 40, "not FASTA or FASTQ"),
    "duplicate": (fasta({"one": "ACGTACGT"}) * 2, "line 3, record 'one': the id is that of line 1 too"),
    "archive": (b"PK\3\4" + bytes(26) + b"one.fna", "is a zip archive or an Excel workbook; unpack it"),
}


def test_broken_samples_leave_the_others_alone_and_run_again_when_mended(project: NewProject) -> None:
    some = project()
    some.write("data/first.fna", GOOD)
    some.write("data/last.faa", ">p\nMKV\n")
    for name, (content, _) in BROKEN.items():
        some.write(f"data/{name}.fna", content)
    between = [(name, f"data/{name}.fna") for name in BROKEN]
    some.write_sheet(("first", "data/first.fna"), *between, ("last", "data/last.faa", "proteins"))

    run = some.run("--keep-going")
    assert run.returncode != 0
    assert "Traceback" not in run.text
    embedded = [f"embed {name}" for name in ("first", *BROKEN, "last")]
    assert run.jobs == sorted(["pool", *embedded, "collect first", "collect last"])
    for name, (_, message) in BROKEN.items():
        for text in (run.text, some.read(f"logs/collect/{name}.log")):
            line = next(line for line in text.splitlines() if f"error: sample '{name}': " in line)
            assert str(some.path(f"data/{name}.fna")) in line
            assert message in line
        assert not some.path(f"results/{name}/embeddings.h5").exists()
    assert some.path("results/first/embeddings.h5").exists()
    assert some.path("results/last/embeddings.h5").exists()
    assert not some.path("results/summary.tsv").exists()
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
    assert not some.path("results/failures.tsv").exists()
    assert some.table("summary.tsv")["rows"].tolist() == ["12"] * 5 + ["1"]
