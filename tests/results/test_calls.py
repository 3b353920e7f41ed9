"""Votes and tables against values computed by hand, and VirNucPro's files against pandas."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas  # type: ignore[import-untyped]
import pytest
from holdfast.errors import InputError
from holdfast.results import calls
from holdfast.results.calls import call_contigs
from holdfast.results.contigs import ContigCall, read_contigs
from holdfast.results.embeddings import EmbeddingsFile, Rows
from holdfast.results.presets import PRESETS, CallRules
from holdfast.results.votes import score_groups, vote
from holdfast.sequences.frames import chunk_bounds, frame_id

from tests.results.samples import Place, Record, write_results

Row = tuple[int, int, int, float, float]

RULES = CallRules(
    margin=0.5,
    virus_score=0.75,
    non_viral_score=0.375,
    moderate_score=0.75,
    high_score=0.875,
    few_chunks=2,
    min_length_bp=0,
    min_chunks=1,
    region_min_chunks=1,
    region_gap_bp=100,
)

# Record, its length in bp and its status.
RECORDS = [
    ("c1", 501, "ok"),
    ('q"|/ö', 1200, "ok"),
    ("frameless", 400, "ok"),
    ("empty", 0, "too_short"),
    ("two", 2, "too_short"),
    ("broken", 600, "failed"),
    ("tie", 500, "ok"),
]
# Record, chunk, frame, P(non-viral), P(virus); all exact in binary.
FRAME_ROWS = [
    (0, 1, 0, 0.25, 0.75),
    (0, 1, 4, 0.875, 0.125),
    (0, 2, 2, 0.0, 1.0),
    (1, 1, 1, 0.5, 0.5),
    (1, 3, 0, 0.25, 0.75),
    (1, 3, 3, 0.75, 0.25),
    (1, 3, 5, 0.625, 0.375),
    (5, 1, 0, 0.0, 1.0),
    (6, 1, 0, 0.75, 0.25),
    (6, 1, 1, 0.5, 0.5),
]
FRAMES_TSV = """\
frame_id contig chunk frame prediction p_non_viral p_virus genetic_code
c1_chunk_1F1 c1 1 F1 virus 0.25 0.75 1
c1_chunk_1R2 c1 1 R2 non-viral 0.875 0.125 1
c1_chunk_2F3 c1 2 F3 virus 0 1 1
q"|/ö_chunk_1F2 q"|/ö 1 F2 non-viral 0.5 0.5 1
q"|/ö_chunk_3F1 q"|/ö 3 F1 virus 0.25 0.75 1
q"|/ö_chunk_3R1 q"|/ö 3 R1 non-viral 0.75 0.25 1
q"|/ö_chunk_3R3 q"|/ö 3 R3 non-viral 0.625 0.375 1
broken_chunk_1F1 broken 1 F1 virus 0 1 1
tie_chunk_1F1 tie 1 F1 non-viral 0.75 0.25 1
tie_chunk_1F2 tie 1 F2 non-viral 0.5 0.5 1
"""
# 1200 bp in chunks of 500 are 300 too many: 100 for each of 3 chunks, and one more at the first 300 - 2 * 100 borders.
CHUNKS_TSV = """\
chunk_id contig start_1based end_1based frames status is_virus max_p_virus max_p_non_viral genetic_code
c1_chunk_1 c1 1 500 2 called False 0.75 0.875 1
c1_chunk_2 c1 251 501 1 called True 1 0 1
q"|/ö_chunk_1 q"|/ö 1 500 1 called True 0.5 0.5 1
q"|/ö_chunk_2 q"|/ö 400 899 0 no_stop_free_frame NA NA NA 1
q"|/ö_chunk_3 q"|/ö 799 1200 3 called True 0.75 0.75 1
frameless_chunk_1 frameless 1 400 0 no_stop_free_frame NA NA NA 1
two_chunk_1 two 1 2 0 too_short NA NA NA 1
broken_chunk_1 broken 1 500 1 called True 1 0 1
broken_chunk_2 broken 300 600 0 failed NA NA NA 1
tie_chunk_1 tie 1 500 2 called False 0.5 0.75 1
"""
# Margins of c1: -0.125 and 1, with weights 0.25 and 1, so (-0.03125 + 1) / 1.25 = 0.775. Those of q are 0: no weight.
# That of tie is -0.25, whatever its weight.
CONTIGS_TSV = """\
contig length chunks evidence decision tier is_virus score p_virus fdr reason genetic_code
c1 501 2 2 virus high True 0.8875 uncalibrated uncalibrated NA 1
q"|/ö 1200 3 2 ambiguous low False 0.5 uncalibrated uncalibrated score~above~0.375,~below~0.75 1
frameless 400 1 0 not~called NA False NA NA NA no~chunk~has~a~stop-free~frame 1
empty 0 0 0 not~called NA False NA NA NA shorter~than~a~codon 1
two 2 1 0 not~called NA False NA NA NA shorter~than~a~codon 1
broken 600 2 1 not~called NA False NA NA NA a~sequence~of~it~was~given~up,~see~records.tsv 1
tie 500 1 1 non-viral low False 0.375 uncalibrated uncalibrated NA 1
"""
# Only the second chunk of c1 is viral with a margin of 0.5 or more; evidence lies outside of it.
REGIONS_TSV = """\
contig start_1based end_1based length chunks evidence viral_chunks mean_margin score tier extent genetic_code
c1 251 501 251 1 1 1 1 1 moderate provirus-like 1
"""


def classified(reader: EmbeddingsFile, rows: Sequence[Row]) -> Iterator[tuple[Rows, np.ndarray]]:
    """The probabilities in blocks of three."""
    probabilities = np.array([row[3:] for row in rows], np.float32)
    for number, block in enumerate(reader.blocks(block_rows=3)):
        yield block, probabilities[3 * number : 3 * number + 3]


def call(
    directory: Path,
    records: Sequence[Record],
    rows: Sequence[Row],
    rules: CallRules = RULES,
    virnucpro: bool = False,
) -> None:
    """Write the embeddings of a sample into a directory, without matrices, and call it there."""
    places: list[Place] = [row[:3] for row in rows]
    with EmbeddingsFile(write_results(directory / "embeddings.h5", records, places)) as reader:
        call_contigs(reader, classified(reader, rows), rules, directory, virnucpro)


def tabs(table: str) -> str:
    """A table as it is written, of one with blanks between the cells and ``~`` for the blanks in them."""
    return table.replace(" ", "\t").replace("~", " ")


def test_tables_are_those_computed_by_hand(tmp_path: Path) -> None:
    call(tmp_path, RECORDS, FRAME_ROWS)
    assert (tmp_path / "frames.tsv").read_text() == tabs(FRAMES_TSV)
    assert (tmp_path / "chunks.tsv").read_text() == tabs(CHUNKS_TSV)
    assert (tmp_path / "contigs.tsv").read_text() == tabs(CONTIGS_TSV)
    assert (tmp_path / "regions.tsv").read_text() == tabs(REGIONS_TSV)
    assert (tmp_path / "regions.bed").read_text() == "c1\t250\t501\tc1|region_251_501\t1000\t.\n"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["chunks.tsv", "contigs.tsv", "embeddings.h5", "frames.tsv", "regions.bed", "regions.tsv"]


def test_other_rules_change_decisions_and_no_vote(tmp_path: Path) -> None:
    call(tmp_path, RECORDS, FRAME_ROWS, replace(RULES, virus_score=0.5, non_viral_score=0.3, min_length_bp=501))
    found = {contig.contig: (contig.decision, contig.tier) for contig in read_contigs(tmp_path / "contigs.tsv")}
    expected = {"c1": ("virus", "high"), 'q"|/ö': ("virus", "low"), "tie": ("not called", None)}
    assert {name: found[name] for name in expected} == expected
    assert (tmp_path / "chunks.tsv").read_text() == tabs(CHUNKS_TSV)


def test_contigs_are_read_back_line_by_line(tmp_path: Path) -> None:
    call(tmp_path, RECORDS, FRAME_ROWS)
    found = list(read_contigs(tmp_path / "contigs.tsv"))
    assert found[0] == ContigCall("c1", 501, 2, 2, "virus", "high", 0.8875, None, None, "")
    why = "no chunk has a stop-free frame"
    assert found[2] == ContigCall("frameless", 400, 1, 0, "not called", None, None, None, None, why)
    assert [contig.is_virus for contig in found] == [True, *[False] * 6]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("contig length", "contig size", "line 1: not a table of contigs"),
        (CONTIGS_TSV, "", "line 1: not a table of contigs"),
        ("True 0.8875", "perhaps 0.8875", "line 2: not a line of a table of contigs"),
        ("True 0.8875", "False 0.8875", "line 2: not a line"),
        ("True 0.8875", "True high", "line 2: not a line"),
        ("True 0.8875", "True nan", "line 2: not a line"),
        ("True 0.8875", "True NA", "line 2: not a line"),
        ("True 0.8875", "True uncalibrated", "line 2: not a line"),
        ("True 0.8875", "True", "line 2: not a line"),
        ("True 0.8875 uncalibrated", "True 0.8875 0.5", "line 2: not a line"),
        ("virus high True", "virus sure True", "line 2: not a line"),
        ("non-viral low", "other low", "line 8: not a line"),
        ("False 0.375", "False 1.5", "line 8: not a line"),
        ("frameless 400", "frameless -400", "line 4: not a line"),
        ("frameless 400", f"frameless {2**63}", "line 4: not a line"),
        ("called NA False NA", "called NA False 1", "line 4: not a line"),
        ("codon 1", "codon 2", "line 5: not a line"),
    ],
)
def test_a_table_that_is_not_of_contigs_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    path = tmp_path / "contigs.tsv"
    assert old in CONTIGS_TSV
    path.write_text(tabs(CONTIGS_TSV.replace(old, new)))
    with pytest.raises(InputError, match=f"contigs.tsv, {problem}"):
        list(read_contigs(path))
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        list(read_contigs(path))


def random_sample(records: int) -> tuple[list[Record], list[Row]]:
    """Records and rows of a sample with many contigs, ties included."""
    random = np.random.default_rng(7)
    entries: list[Record] = [
        (f"r{random.integers(1000)}|{number}'\"", int(random.integers(3, 12000)), "ok") for number in range(records)
    ]
    rows: list[Row] = []
    for number, (_, length_bp, _) in enumerate(entries):
        for chunk in range(1, len(chunk_bounds(length_bp, 500)[0]) + 1):
            for frame in np.flatnonzero(random.random(6) < 0.2):
                p_virus = np.float32(random.choice([random.random(), 0.5, 1.0, 1e-9]))
                rows.append((number, chunk, int(frame), float(np.float32(1) - p_virus), float(p_virus)))
    return entries, rows


def test_virnucpro_files_and_contigs_equal_a_recomputation_with_pandas(tmp_path: Path) -> None:
    entries, rows = random_sample(400)
    call(tmp_path, entries, rows, PRESETS["relaxed"], virnucpro=True)
    expected = pandas.DataFrame(
        {
            "Sequence_ID": [frame_id(entries[record][0], chunk, frame) for record, chunk, frame, *_ in rows],
            "Prediction": ["virus" if p_virus > p_non_viral else "others" for *_, p_non_viral, p_virus in rows],
            "score1": np.array([row[3] for row in rows], np.float32),
            "score2": np.array([row[4] for row in rows], np.float32),
        }
    )
    tsv = {"sep": "\t", "quoting": 3, "keep_default_na": False}
    found = pandas.read_csv(
        tmp_path / "virnucpro" / "prediction_results.txt", dtype={"score1": "float32", "score2": "float32"}, **tsv
    )
    pandas.testing.assert_frame_equal(found, expected, check_exact=True)

    expected["Modified_ID"] = expected["Sequence_ID"].str[:-2]
    groups = expected.groupby("Modified_ID")[["score1", "score2"]].max()
    votes = (groups["score2"] >= groups["score1"]).rename("Is_Virus").reset_index()
    found = pandas.read_csv(tmp_path / "virnucpro" / "prediction_results_highestscore.csv", **tsv)
    pandas.testing.assert_frame_equal(found, votes, check_exact=True)

    groups = groups.astype(float)
    groups["margin"] = groups["score2"] - groups["score1"]
    groups["weight"] = (groups["margin"].abs() / 0.2).clip(upper=1)
    groups["weighed"] = groups["margin"] * groups["weight"]
    groups["contig"] = groups.index.str.replace(r"_chunk_\d+$", "", regex=True)
    sums = groups.groupby("contig")[["weighed", "weight"]].sum()
    means = 0.5 + (sums["weighed"] / sums["weight"]).fillna(0) / 2
    contigs = pandas.read_csv(tmp_path / "contigs.tsv", sep="\t", quoting=3, index_col="contig")
    assert contigs.index.tolist() == [name for name, *_ in entries]
    called = contigs[contigs["decision"] != "not called"]
    assert sorted(called.index) == sorted(means.index)
    np.testing.assert_allclose(called["score"], means[called.index], rtol=1e-8, atol=1e-9)
    assert contigs["score"].isna().sum() == len(entries) - len(means) > 0
    chunks = pandas.read_csv(tmp_path / "chunks.tsv", sep="\t", quoting=3, keep_default_na=False)
    bounds = [chunk_bounds(length_bp, 500) for _, length_bp, _ in entries]
    assert chunks["start_1based"].tolist() == [start + 1 for starts, _ in bounds for start in starts]
    assert chunks["end_1based"].tolist() == [end for _, ends in bounds for end in ends]
    assert (chunks["frames"] > 0).tolist() == (chunks["status"] == "called").tolist()
    assert chunks["frames"].sum() == len(rows)


def test_frames_table_gives_back_the_same_float32(tmp_path: Path) -> None:
    entries, rows = random_sample(50)
    call(tmp_path, entries, rows)
    columns = {"p_non_viral": "float32", "p_virus": "float32"}
    found = pandas.read_csv(tmp_path / "frames.tsv", sep="\t", quoting=3, dtype=columns)
    assert found["contig"].tolist() == [entries[row[0]][0] for row in rows]
    numbers = found[list(columns)].to_numpy()
    np.testing.assert_array_equal(numbers, np.array([row[3:] for row in rows], np.float32))


def test_a_chunk_has_a_margin_of_0_or_more_exactly_when_it_is_a_virus() -> None:
    ones = np.float32(1)
    p_virus = np.array([0.5, np.nextafter(ones / 2, 0), np.nextafter(ones / 2, ones), 1e-30, 1], np.float32)
    p_non_viral = np.array([0.5, 0.5, 0.5, 1, 0], np.float32)
    votes = vote(np.arange(5), 5, np.stack([p_non_viral, p_virus], axis=1))
    assert votes.is_virus.tolist() == (votes.margin >= 0).tolist() == [True, False, True, False, True]


def test_frames_may_come_in_any_order() -> None:
    chunk = np.array([2, 0, 2, 0, 4])
    probabilities = np.array([[0.25, 0.75], [1, 0], [0.5, 0.5], [0, 1], [0.75, 0.25]], np.float32)
    votes = vote(chunk, 5, probabilities)
    assert votes.frames.tolist() == [2, 0, 2, 0, 1]
    assert votes.max_p_non_viral.tolist() == [1, 0, 0.5, 0, 0.75]
    assert votes.max_p_virus.tolist() == [1, 0, 0.75, 0, 0.25]
    evidence, score = score_groups(np.array([0, 0, 0, 1, 2]), 4, votes, confident=0.5)
    assert evidence.tolist() == [2, 0, 1, 0]
    # The margins 0 and 0.25 have weights 0 and 0.5; -0.5 has 1.
    np.testing.assert_allclose(score, [0.625, np.nan, 0.25, np.nan])


@pytest.mark.parametrize("records", [[], [("a", 400, "ok"), ("b", 0, "too_short")]])
def test_a_sample_without_frames_is_called(tmp_path: Path, records: list[Record]) -> None:
    call(tmp_path, records, [], virnucpro=True)
    assert (tmp_path / "frames.tsv").read_text() == tabs(FRAMES_TSV.splitlines(keepends=True)[0])
    contigs = [line.split("\t") for line in (tmp_path / "contigs.tsv").read_text().splitlines()[1:]]
    empty = ["not called", "NA", "False", "NA", "NA", "NA"]
    expected = [
        ["a", "400", "1", "0", *empty, "no chunk has a stop-free frame", "1"],
        ["b", "0", "0", "0", *empty, "shorter than a codon", "1"],
    ]
    assert contigs == expected[: len(records)]
    assert len((tmp_path / "regions.tsv").read_text().splitlines()) == 1
    assert (tmp_path / "regions.bed").read_text() == ""
    assert (tmp_path / "virnucpro" / calls.VIRNUCPRO_CHUNKS).read_text() == "Modified_ID\tIs_Virus\n"
    assert (tmp_path / "virnucpro" / calls.VIRNUCPRO_FRAMES).read_text() == "Sequence_ID\tPrediction\tscore1\tscore2\n"


def test_contigs_are_named_after_their_records(tmp_path: Path) -> None:
    """Ids of rows are not looked into: a record's own name may end like a frame's."""
    records = [("a_chunk_1F1", 500, "ok"), ("b", 500, "ok"), ("c", 500, "ok")]
    rows: list[Row] = [(0, 1, 0, 0.25, 0.75), (1, 1, 5, 1.0, 0.0), (2, 1, 0, 0.0, 1.0), (2, 1, 1, 0.5, 0.5)]
    call(tmp_path, records, rows)
    lines = [line.split("\t")[:2] for line in (tmp_path / "frames.tsv").read_text().splitlines()[1:]]
    assert lines == [
        ["a_chunk_1F1_chunk_1F1", "a_chunk_1F1"],
        ["b_chunk_1R3", "b"],
        ["c_chunk_1F1", "c"],
        ["c_chunk_1F2", "c"],
    ]
    scores = [(contig.contig, contig.score) for contig in read_contigs(tmp_path / "contigs.tsv")]
    assert scores == [("a_chunk_1F1", 0.75), ("b", 0.0), ("c", 0.75)]


def test_rows_in_another_order_than_their_records_are_refused(tmp_path: Path) -> None:
    rows: list[Row] = [(0, 1, 0, 0.5, 0.5), (1, 1, 0, 0.5, 0.5), (0, 1, 1, 0.5, 0.5)]
    with pytest.raises(InputError, match=r"embeddings\.h5: its rows are not in the order of its records"):
        call(tmp_path, [("a", 500, "ok"), ("b", 500, "ok")], rows)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.h5"]


def test_blocks_of_records_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, rows = random_sample(60)
    for name in ("whole", "blocks"):
        (tmp_path / name).mkdir()
    call(tmp_path / "whole", entries, rows, virnucpro=True)
    monkeypatch.setattr(EmbeddingsFile.record_blocks, "__defaults__", (7,))
    call(tmp_path / "blocks", entries, rows, virnucpro=True)
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        if path.suffix != ".h5":
            assert (tmp_path / "blocks" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_frame_of_a_chunk_that_is_not_there_is_refused(tmp_path: Path, chunk: int) -> None:
    with pytest.raises(InputError, match=r"embeddings\.h5: holds a frame of a chunk that its record does not have"):
        call(tmp_path, [("a", 500, "ok")], [(0, chunk, 0, 0.5, 0.5)])
    assert not (tmp_path / "contigs.tsv").exists()
