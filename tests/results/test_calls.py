"""Votes and tables against values computed by hand, and VirNucPro's files against pandas."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas  # type: ignore[import-untyped]
import pytest
from holdfast.errors import ConfigError, InputError
from holdfast.results import calls
from holdfast.results.calls import ContigCall, call_contigs, read_contigs
from holdfast.results.embeddings import EmbeddingsFile, Rows
from holdfast.sequences.frames import chunk_bounds, frame_id

from tests.results.samples import Place, Record, write_results

Row = tuple[int, int, int, float, float]

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
frame_id contig chunk frame prediction p_non_viral p_virus
c1_chunk_1F1 c1 1 F1 virus 0.25 0.75
c1_chunk_1R2 c1 1 R2 non-viral 0.875 0.125
c1_chunk_2F3 c1 2 F3 virus 0 1
q"|/ö_chunk_1F2 q"|/ö 1 F2 non-viral 0.5 0.5
q"|/ö_chunk_3F1 q"|/ö 3 F1 virus 0.25 0.75
q"|/ö_chunk_3R1 q"|/ö 3 R1 non-viral 0.75 0.25
q"|/ö_chunk_3R3 q"|/ö 3 R3 non-viral 0.625 0.375
broken_chunk_1F1 broken 1 F1 virus 0 1
tie_chunk_1F1 tie 1 F1 non-viral 0.75 0.25
tie_chunk_1F2 tie 1 F2 non-viral 0.5 0.5
"""
# 1200 bp in chunks of 500 are 300 too many: 100 for each of 3 chunks, and one more at the first 300 - 2 * 100 borders.
CHUNKS_TSV = """\
chunk_id contig start end frames status is_virus max_p_virus max_p_non_viral
c1_chunk_1 c1 0 500 2 called False 0.75 0.875
c1_chunk_2 c1 250 501 1 called True 1 0
q"|/ö_chunk_1 q"|/ö 0 500 1 called True 0.5 0.5
q"|/ö_chunk_2 q"|/ö 399 899 0 no_stop_free_frame NA NA NA
q"|/ö_chunk_3 q"|/ö 798 1200 3 called True 0.75 0.75
frameless_chunk_1 frameless 0 400 0 no_stop_free_frame NA NA NA
two_chunk_1 two 0 2 0 too_short NA NA NA
broken_chunk_1 broken 0 500 1 called True 1 0
broken_chunk_2 broken 299 600 0 failed NA NA NA
tie_chunk_1 tie 0 500 2 called False 0.5 0.75
"""
# c1: (0.75 / 1.625 + 1) / 2 = 19/26; the ties of q give 1/2 and 1/2; tie: 0.5 / 1.25.
CONTIGS_TSV = """\
contig length chunks chunks_with_frames status is_virus score
c1 501 2 2 called True 0.730769231
q"|/ö 1200 3 2 called True 0.5
frameless 400 1 0 no_stop_free_frame NA NA
empty 0 0 0 too_short NA NA
two 2 1 0 too_short NA NA
broken 600 2 1 failed NA NA
tie 500 1 1 called False 0.4
"""


def classified(reader: EmbeddingsFile, rows: Sequence[Row]) -> Iterator[tuple[Rows, np.ndarray]]:
    """The probabilities in blocks of three."""
    probabilities = np.array([row[3:] for row in rows], np.float32)
    for number, block in enumerate(reader.blocks(block_rows=3)):
        yield block, probabilities[3 * number : 3 * number + 3]


def call(
    directory: Path, records: Sequence[Record], rows: Sequence[Row], threshold: float = 0.5, virnucpro: str = ""
) -> None:
    """Write the embeddings of a sample into a directory, without matrices, and call it there."""
    places: list[Place] = [row[:3] for row in rows]
    frames, chunks, contigs = (directory / f"{name}.tsv" for name in ("frames", "chunks", "contigs"))
    with EmbeddingsFile(write_results(directory / "embeddings.h5", records, places)) as reader:
        wanted = directory / virnucpro if virnucpro else None
        call_contigs(reader, classified(reader, rows), threshold, frames, chunks, contigs, wanted)


def tabs(table: str) -> str:
    return table.replace(" ", "\t")


def test_tables_are_those_computed_by_hand(tmp_path: Path) -> None:
    call(tmp_path, RECORDS, FRAME_ROWS)
    assert (tmp_path / "frames.tsv").read_text() == tabs(FRAMES_TSV)
    assert (tmp_path / "chunks.tsv").read_text() == tabs(CHUNKS_TSV)
    assert (tmp_path / "contigs.tsv").read_text() == tabs(CONTIGS_TSV)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["chunks.tsv", "contigs.tsv", "embeddings.h5", "frames.tsv"]


@pytest.mark.parametrize(("threshold", "viruses"), [(0, "111"), (0.4, "111"), (0.41, "110"), (0.51, "100"), (1, "000")])
def test_the_threshold_decides_the_contigs(tmp_path: Path, threshold: float, viruses: str) -> None:
    call(tmp_path, RECORDS, FRAME_ROWS, threshold)
    found = {contig.contig: contig.is_virus for contig in read_contigs(tmp_path / "contigs.tsv")}
    assert [found[name] for name in ("c1", 'q"|/ö', "tie")] == [virus == "1" for virus in viruses]
    assert (tmp_path / "chunks.tsv").read_text() == tabs(CHUNKS_TSV)


def test_contigs_are_read_back_line_by_line(tmp_path: Path) -> None:
    call(tmp_path, RECORDS, FRAME_ROWS)
    found = list(read_contigs(tmp_path / "contigs.tsv"))
    assert found[0] == ContigCall("c1", 501, 2, 2, "called", True, 0.730769231)
    assert found[2] == ContigCall("frameless", 400, 1, 0, "no_stop_free_frame", None, None)
    assert [contig.outcome for contig in found] == [
        *("virus", "virus", "no_stop_free_frame", "too_short", "too_short", "failed", "non-viral")
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("contig length", "contig size", "line 1: not a table of contigs"),
        (CONTIGS_TSV, "", "line 1: not a table of contigs"),
        ("True 0.730769231", "perhaps 0.730769231", "line 2: not a line of a table of contigs"),
        ("True 0.730769231", "True high", "line 2: not a line"),
        ("True 0.730769231", "True nan", "line 2: not a line"),
        ("True 0.730769231", "True NA", "line 2: not a line"),
        ("True 0.730769231", "True", "line 2: not a line"),
        ("called False", "called False 1", "line 8: not a line"),
        ("frameless 400", "frameless -400", "line 4: not a line"),
        ("frameless 400", f"frameless {2**63}", "line 4: not a line"),
        ("400 1 0 no_stop_free_frame NA", "400 1 0 no_stop_free_frame True", "line 4: not a line"),
        ("no_stop_free_frame", "no_open_frame", "line 4: not a line"),
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
    call(tmp_path, entries, rows, virnucpro="virnucpro")
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
    groups["score"] = groups["score2"] / (groups["score1"] + groups["score2"])
    groups["contig"] = groups.index.str.replace(r"_chunk_\d+$", "", regex=True)
    means = groups.groupby("contig")["score"].mean()
    contigs = pandas.read_csv(tmp_path / "contigs.tsv", sep="\t", quoting=3, index_col="contig")
    assert contigs.index.tolist() == [name for name, *_ in entries]
    called = contigs[contigs["status"] == "called"]
    assert sorted(called.index) == sorted(means.index)
    np.testing.assert_allclose(called["score"], means[called.index], rtol=1e-8)
    assert contigs["score"].isna().sum() == len(entries) - len(means) > 0
    chunks = pandas.read_csv(tmp_path / "chunks.tsv", sep="\t", quoting=3, keep_default_na=False)
    bounds = [chunk_bounds(length_bp, 500) for _, length_bp, _ in entries]
    assert chunks["start"].tolist() == [start for starts, _ in bounds for start in starts]
    assert chunks["end"].tolist() == [end for _, ends in bounds for end in ends]
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


def test_a_chunk_scores_a_half_or_more_exactly_when_it_is_a_virus() -> None:
    ones = np.float32(1)
    p_virus = np.array([0.5, np.nextafter(ones / 2, 0), np.nextafter(ones / 2, ones), 1e-30, 1], np.float32)
    p_non_viral = np.array([0.5, 0.5, 0.5, 1, 0], np.float32)
    votes = calls.vote(np.arange(5), 5, np.stack([p_non_viral, p_virus], axis=1))
    assert votes.is_virus.tolist() == (votes.score >= 0.5).tolist() == [True, False, True, False, True]


def test_frames_may_come_in_any_order() -> None:
    chunk = np.array([2, 0, 2, 0, 4])
    probabilities = np.array([[0.25, 0.75], [1, 0], [0.5, 0.5], [0, 1], [0.75, 0.25]], np.float32)
    votes = calls.vote(chunk, 5, probabilities)
    assert votes.frames.tolist() == [2, 0, 2, 0, 1]
    assert votes.max_p_non_viral.tolist() == [1, 0, 0.5, 0, 0.75]
    assert votes.max_p_virus.tolist() == [1, 0, 0.75, 0, 0.25]
    count, score = calls.score_contigs(np.array([0, 0, 0, 1, 2]), 4, votes)
    assert count.tolist() == [2, 0, 1, 0]
    np.testing.assert_allclose(score, [(0.5 + 0.6) / 2, np.nan, 0.25, np.nan])


@pytest.mark.parametrize("records", [[], [("a", 400, "ok"), ("b", 0, "too_short")]])
def test_a_sample_without_frames_is_called(tmp_path: Path, records: list[Record]) -> None:
    call(tmp_path, records, [], virnucpro="original")
    assert (tmp_path / "frames.tsv").read_text() == tabs(FRAMES_TSV.splitlines(keepends=True)[0])
    contigs = [line.split("\t") for line in (tmp_path / "contigs.tsv").read_text().splitlines()[1:]]
    expected = [["a", "400", "1", "0", "no_stop_free_frame", "NA", "NA"], ["b", "0", "0", "0", "too_short", "NA", "NA"]]
    assert contigs == expected[: len(records)]
    assert (tmp_path / "original" / calls.VIRNUCPRO_CHUNKS).read_text() == "Modified_ID\tIs_Virus\n"
    assert (tmp_path / "original" / calls.VIRNUCPRO_FRAMES).read_text() == "Sequence_ID\tPrediction\tscore1\tscore2\n"


def test_rows_may_be_in_any_order_and_contigs_are_named_after_their_records(tmp_path: Path) -> None:
    """Ids of rows are not looked into: a record's own name may end like a frame's."""
    records = [("a_chunk_1F1", 500, "ok"), ("b", 500, "ok"), ("c", 500, "ok")]
    rows: list[Row] = [(2, 1, 0, 0.0, 1.0), (0, 1, 0, 0.25, 0.75), (1, 1, 5, 1.0, 0.0), (2, 1, 1, 0.5, 0.5)]
    call(tmp_path, records, rows)
    lines = [line.split("\t")[:2] for line in (tmp_path / "frames.tsv").read_text().splitlines()[1:]]
    assert lines == [
        ["c_chunk_1F1", "c"],
        ["a_chunk_1F1_chunk_1F1", "a_chunk_1F1"],
        ["b_chunk_1R3", "b"],
        ["c_chunk_1F2", "c"],
    ]
    scores = [(contig.contig, contig.score) for contig in read_contigs(tmp_path / "contigs.tsv")]
    assert scores == [("a_chunk_1F1", 0.75), ("b", 0.0), ("c", pytest.approx(2 / 3))]


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_frame_of_a_chunk_that_is_not_there_is_refused(tmp_path: Path, chunk: int) -> None:
    with pytest.raises(InputError, match=r"embeddings\.h5: holds a frame of a chunk that its record does not have"):
        call(tmp_path, [("a", 500, "ok")], [(0, chunk, 0, 0.5, 0.5)])
    assert not (tmp_path / "contigs.tsv").exists()


def test_a_wrong_threshold_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"threshold 1\.5: must lie between 0 and 1"):
        call(tmp_path, RECORDS, FRAME_ROWS, 1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.h5"]
