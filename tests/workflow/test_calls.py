"""From real genomes to calls: a classifier that is trained on some of the demo's, and calibrated on others."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas  # type: ignore[import-untyped]
from Bio import SeqIO
from holdfast.results.decisions import TIERS
from holdfast.results.presets import PRESETS, CallRules, choose_rules
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records

from tests.workflow.conftest import DEMO, NewProject, Project, fasta, jobs


def genome(name: str) -> str:
    """The pieces of one of the demo's samples, one behind the other."""
    return "".join(record.sequence for record in read_records(DEMO / "data" / name, Alphabet.NUCLEOTIDE))


def pieces(sequence: str, length_bp: int, step_bp: int) -> str:
    starts = range(0, len(sequence) - length_bp, step_bp)
    return fasta({f"at_{start}": sequence[start : start + length_bp] for start in starts})


def check_sequences(some: Project, samples: dict[str, dict[str, str]], name: str) -> None:
    """The sequences of viruses are those that tables and inputs give, for each sample and together."""
    together = {}
    for sample, sequences in samples.items():
        contigs, regions = some.table(f"{sample}/contigs.tsv"), some.table(f"{sample}/regions.tsv")
        assert contigs["contig"].tolist() == list(sequences)
        assert ((contigs["decision"] == "virus") == (contigs["is_virus"] == "True")).all()
        viruses = contigs.loc[contigs["decision"] == "virus", "contig"].tolist()
        expected = {contig: sequences[contig] for contig in viruses}
        for row in regions.to_dict("records"):
            if row["contig"] not in viruses:
                start, end = int(row["start_1based"]), int(row["end_1based"])
                expected[f"{row['contig']}|region_{start}_{end}"] = sequences[row["contig"]][start - 1 : end]
        found = SeqIO.to_dict(SeqIO.parse(StringIO(some.read(f"results/{sample}/{name}")), "fasta"))
        assert {key: str(record.seq) for key, record in found.items()} == expected
        together |= {f"{sample}|{key}": sequence for key, sequence in expected.items()}
        bed = some.read(f"results/{sample}/regions.bed").splitlines()
        assert [line.split("\t")[:3] for line in bed] == [
            [row["contig"], str(int(row["start_1based"]) - 1), row["end_1based"]] for row in regions.to_dict("records")
        ]
    found = SeqIO.to_dict(SeqIO.parse(StringIO(some.read(f"results/{name}")), "fasta"))
    assert {key: str(record.seq) for key, record in found.items()} == together
    parts = [some.table(f"{sample}/contigs.tsv").assign(sample=sample) for sample in samples]
    expected_table = pandas.concat(parts, ignore_index=True)
    pandas.testing.assert_frame_equal(some.table("contigs.tsv")[expected_table.columns], expected_table)


def check_coherence(some: Project, sample: str, rules: CallRules) -> None:
    """Frames, chunks, contigs, regions, summary and report of a sample say the same, by the rules."""
    names = ("frames", "chunks", "contigs", "regions")
    frames, chunks, contigs, regions = (some.table(f"{sample}/{name}.tsv") for name in names)
    for table in (frames, chunks, contigs, regions):
        assert set(table["genetic_code"]) <= {"11"}
    chunks = chunks.astype({"start_1based": int, "end_1based": int, "frames": int})
    assert chunks["frames"].sum() == len(frames)
    evidence = chunks[chunks["status"] == "called"].astype({"max_p_virus": float, "max_p_non_viral": float})
    evidence = evidence.assign(margin=evidence["max_p_virus"] - evidence["max_p_non_viral"])
    counted = evidence.groupby("contig").size().reindex(contigs["contig"], fill_value=0)
    assert contigs["evidence"].astype(int).tolist() == counted.tolist()
    called = contigs[contigs["decision"] != "not called"].astype({"score": float, "evidence": int})
    for row in called.to_dict("records"):
        sure = row["score"] if row["decision"] == "virus" else 1 - row["score"]
        tier = (sure >= rules.moderate_score) + int(sure >= rules.high_score)
        lowered = tier > 0 and row["evidence"] < rules.few_chunks
        expected = "low" if row["decision"] == "ambiguous" else TIERS[tier - lowered]
        assert row["tier"] == expected, row
        assert row["reason"].startswith("tier lowered") == (lowered and row["decision"] != "ambiguous"), row
    for row in regions.to_dict("records"):
        start, end = int(row["start_1based"]), int(row["end_1based"])
        of_contig = evidence[evidence["contig"] == row["contig"]]
        inside = of_contig[(of_contig["start_1based"] >= start) & (of_contig["end_1based"] <= end)]
        assert row["contig"] in set(called["contig"])
        assert (int(row["evidence"]), int(row["length"])) == (len(inside), end - start + 1)
        assert int(row["viral_chunks"]) == (inside["margin"] >= rules.margin).sum() >= rules.region_min_chunks
        assert abs(float(row["mean_margin"]) - inside["margin"].mean()) < 1e-5
        assert row["extent"] == "provirus-like" or len(inside) == len(of_contig)
    summary = some.table("summary.tsv").set_index("sample").loc[sample]
    viruses = contigs[contigs["decision"] == "virus"]
    assert (summary["genetic_code"], int(summary["virus"])) == ("11", len(viruses))
    assert [int(summary[f"virus_{tier}"]) for tier in TIERS] == [(viruses["tier"] == tier).sum() for tier in TIERS]
    if len(viruses) and not (called["fdr"] == "uncalibrated").any():  # the list ends with its largest rate
        assert abs(float(summary["virus_fdr"]) - viruses["fdr"].astype(float).max()) < 1e-3
    page = some.read("results/report.html")
    listed = json.loads(re.search(r"const contigs = (.*);\n", page)[1])  # type: ignore[index]
    rows = [dict(zip(listed["columns"], row, strict=True)) for row in listed["rows"]]
    rows = [row for row in rows if listed["samples"][row["sample"]] == sample]
    expected_rows = {(row["contig"], row["decision"]) for row in contigs.to_dict("records")}
    assert {(row["contig"], row["decision"]) for row in rows} == expected_rows


def test_contigs_are_called_calibrated_and_written(project: NewProject) -> None:
    some = project()
    phage, bacterium = genome("phage_heldout.fna"), genome("bacterium_heldout.fna")
    some.write("data/phage.fna", pieces(genome("phage_train.fna"), 1500, 1000))
    some.write("data/bacterium.fna", pieces(genome("bacterium_train.fna.gz"), 1500, 1500))
    sequences = {"lysogen": bacterium[:8000] + phage[:9000] + bacterium[8000:16000], "phage": phage, "stub": "AC"}
    some.write("data/new.fna", fasta(sequences))
    some.configure(genetic_code=11, calls={"region_min_chunks": 2})
    trained = [("p", "data/phage.fna", "contigs", "virus"), ("b", "data/bacterium.fna", "contigs", "non-viral")]
    some.write_sheet(*trained, ("new", "data/new.fna"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("p", "b", "new", called=["new"], once=["train"])
    check_sequences(some, {"new": sequences}, "virus.fna")
    check_coherence(some, "new", replace(PRESETS["relaxed"], region_min_chunks=2))
    assert "genetic_code=11" in some.read("results/virus.fna")
    contigs = some.table("new/contigs.tsv").set_index("contig")
    assert contigs.loc["stub", ["decision", "tier", "reason"]].tolist() == ["not called", "NA", "shorter than a codon"]
    assert contigs.loc["phage", "decision"] in ("virus", "ambiguous", "non-viral")
    held_out = json.loads(some.read("results/classifier/calibration.json"))
    path = some.path("results/classifier/classifier.safetensors")
    assert held_out["classifier_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    called = contigs["decision"] != "not called"
    assert (contigs.loc[called, "fdr"] == "uncalibrated").all() == (held_out["method"] == "none")

    # Other thresholds classify anew, and train nothing.
    some.configure(genetic_code=11, calls={"region_min_chunks": 2, "virus_score": 0.7})
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == ["all", "check_samples", "classify_contigs new", "combine", "draw", "summarize"]

    # The same classifier as one that is given; other pieces calibrate it, and are called, too.
    shutil.copy(path, some.path("data/kept.safetensors"))
    some.write("data/phage2.fna", pieces(phage, 700, 300))
    some.write("data/bacterium2.fna", pieces(bacterium, 700, 300))
    calls = {"preset": "conservative", "margin": 0.2, "min_length_bp": 700, "min_chunks": 1, "max_fdr": 0.5}
    some.configure(genetic_code=11, calls=calls, classifier="data/kept.safetensors", output_bgzip=True)
    labelled = [("p2", "data/phage2.fna", "contigs", "virus"), ("b2", "data/bacterium2.fna", "contigs", "non-viral")]
    some.write_sheet(*labelled, ("new", "data/new.fna"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("p2", "b2", called=["p2", "b2", "new"], once=["calibrate"])
    calibration = json.loads(some.read("results/classifier/calibration.json"))
    assert (calibration["method"], calibration["split"]) == ("sigmoid", "all")
    assert f"Brier score {calibration['brier']:.3f}" in some.read("results/report.html")
    assert "Brier score" in some.read("results/figures/calibration.svg")
    rules = choose_rules(calls)
    for sample in ("p2", "b2", "new"):
        table = some.table(f"{sample}/contigs.tsv")
        table = table[table["decision"] != "not called"].astype({"score": float, "p_virus": float, "fdr": float})
        table = table.sort_values("score", ascending=False)
        expected = (1 - table["p_virus"]).cumsum() / np.arange(1, len(table) + 1)
        assert (table["fdr"] - expected.groupby(table["score"]).transform("last")).abs().max() < 1e-7
        assert ((table["decision"] == "virus") == (table["fdr"] <= 0.5)).all()
        check_coherence(some, sample, rules)
    files = {path.relative_to(some.path("results")).as_posix() for path in some.path("results").rglob("virus.fna*")}
    assert files == {"virus.fna.gz", *(f"{sample}/virus.fna.gz" for sample in ("p2", "b2", "new"))}
    assert "of a classifier trained by an earlier run, not in use" in some.read("results/report.html")
    assert some.run().jobs == []
