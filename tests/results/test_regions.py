"""Regions against a table computed by hand, and the files of regions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.errors import InputError
from holdfast.results.embeddings import Records
from holdfast.results.presets import PRESETS
from holdfast.results.regions import REGION_COLUMNS, Region, Regions, find_regions, read_regions, region_lines
from holdfast.results.votes import Votes
from holdfast.sequences.frames import bounds_of_records

RULES = replace(PRESETS["relaxed"], margin=0.5, region_min_chunks=2, region_gap_bp=600, few_chunks=3)

# A contig for each line: its name, its length, and of each 500 bp chunk V (margin 1), v (0.25), n (-1), . (no frame).
CONTIGS = [
    ("virus", 2000, "VVVV"),
    ("prophage", 6000, "nn.VV.Vnnn.n"),
    ("two", 5500, "VV..VVnnnnn"),  # 1,000 bp between them
    ("weak", 2000, "vvvv"),
    ("single", 2000, "V.nn"),
    ("border", 1000, "VV"),  # of this
    ("next", 1000, "VV"),  # and this contig no region is made together
    ("ends", 5000, "....VVV..."),  # no evidence outside, but 2,000 bp of nothing
    ("uncalled", 1000, "VV"),
    ("empty", 0, ""),
]
# Contig, start and end (0-based), chunks, evidence, viral chunks, mean margin, score, tier, whole.
REGIONS = [
    ("virus", 0, 2000, 4, 4, 4, 1, 1, 2, True),
    ("prophage", 1500, 3500, 4, 3, 3, 1, 1, 2, False),
    ("two", 0, 1000, 2, 2, 2, 1, 1, 1, False),
    ("two", 2000, 3000, 2, 2, 2, 1, 1, 1, False),
    ("border", 0, 1000, 2, 2, 2, 1, 1, 1, True),
    ("next", 0, 1000, 2, 2, 2, 1, 1, 1, True),
    ("ends", 2000, 3500, 3, 3, 3, 1, 1, 2, False),
]
PROBABILITIES = {"V": (0, 1), "v": (0.375, 0.625), "n": (1, 0), ".": (0, 0)}


def find(contigs: list[tuple[str, int, str]], **changes: Any) -> Regions:
    lengths_bp = np.array([length_bp for _, length_bp, _ in contigs], np.int64)
    contig, start_bp, end_bp = bounds_of_records(lengths_bp, 500)
    chunks = "".join(text for *_, text in contigs)
    assert len(chunks) == len(contig)
    values = np.array([PROBABILITIES[chunk] for chunk in chunks], np.float32).reshape(-1, 2)
    votes = Votes(np.array([int(chunk != ".") for chunk in chunks], np.int64), values[:, 0], values[:, 1])
    called = np.array([name != "uncalled" for name, *_ in contigs], bool)
    return find_regions(contig, start_bp, end_bp, votes, called, lengths_bp, replace(RULES, **changes))


def lines(contigs: list[tuple[str, int, str]], found: Regions) -> list[tuple[object, ...]]:
    columns = [getattr(found, name).tolist() for name in Regions.__dataclass_fields__]
    return [(contigs[contig][0], *values) for contig, *values in zip(*columns, strict=True)]


def test_regions_are_those_of_the_table() -> None:
    assert lines(CONTIGS, find(CONTIGS)) == REGIONS


def test_gaps_and_chunks_are_parameters() -> None:
    merged = lines(CONTIGS, find(CONTIGS, region_gap_bp=1000))
    assert ("two", 0, 3000, 6, 4, 4, 1, 1, 2, False) in merged
    assert {line[0] for line in lines(CONTIGS, find(CONTIGS, region_min_chunks=3))} == {"virus", "prophage", "ends"}
    assert ("weak", 0, 2000, 4, 4, 4, 0.25, 0.625, 0, True) in lines(CONTIGS, find(CONTIGS, margin=0.25))
    assert ("single", 0, 500, 1, 1, 1, 1, 1, 1, False) in lines(CONTIGS, find(CONTIGS, region_min_chunks=1))


def test_chunks_within_a_region_that_say_otherwise_count() -> None:
    """Margins 1, -1, 1 with full weights: a third on the side of the virus."""
    (line,) = lines([("mixed", 1500, "VnV")], find([("mixed", 1500, "VnV")]))
    assert line == ("mixed", 0, 1500, 3, 3, 2, pytest.approx(1 / 3), pytest.approx(2 / 3), 0, True)


def test_a_sample_without_chunks_has_no_region() -> None:
    assert lines([], find([])) == []
    assert lines([("empty", 0, "")], find([("empty", 0, "")])) == []


def test_regions_are_written_for_people_and_as_bed_and_read_back(tmp_path: Path) -> None:
    names = [name for name, *_ in CONTIGS]
    records = Records(names, np.zeros(len(names)), np.zeros(len(names)), [])
    lines, bed_lines = zip(*region_lines(records, find(CONTIGS), 11), strict=True)
    (tmp_path / "regions.tsv").write_text("\t".join(REGION_COLUMNS) + "\n" + "".join(lines))
    table = (tmp_path / "regions.tsv").read_text().splitlines()
    assert table[0].split("\t") == [
        *("contig", "start_1based", "end_1based", "length", "chunks", "evidence", "viral_chunks", "mean_margin"),
        *("score", "tier", "extent", "genetic_code"),
    ]
    assert table[1].split("\t") == ["virus", "1", "2000", "2000", "4", "4", "4", "1", "1", "high", "whole", "11"]
    assert table[2].split("\t")[:4] == ["prophage", "1501", "3500", "2000"]
    assert table[2].split("\t")[-2] == "provirus-like"
    bed = [line.removesuffix("\n").split("\t") for line in bed_lines]
    assert bed[1] == ["prophage", "1500", "3500", "prophage|region_1501_3500", "1000", "."]
    assert [(row[0], int(row[1]), int(row[2])) for row in bed] == [row[:3] for row in REGIONS]
    found = list(read_regions(tmp_path / "regions.tsv"))
    assert found[1] == Region("prophage", 1500, 3500, 1.0, "high")
    assert [region.id for region in found] == [row[3] for row in bed]
    (tmp_path / "regions.tsv").write_text("\n".join([*table[:3], table[3].replace("two\t1", "two\t0")]) + "\n")
    with pytest.raises(InputError, match=r"regions\.tsv, line 4: not a line of a table of regions"):
        list(read_regions(tmp_path / "regions.tsv"))
