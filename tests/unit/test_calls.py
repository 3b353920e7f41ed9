"""Votes and tables against values computed by hand, and VirNucPro's files against pandas."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas  # type: ignore[import-untyped]
import pytest
from holdfast import calls
from holdfast.embeddings import Reader, Rows, Writer
from holdfast.errors import ConfigError, InputError
from holdfast.frames import FRAMES, chunk_bounds, frame_id

SCRIPTS = Path(calls.__file__).parents[1]

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
# Record, chunk, frame, P(other), P(virus); all exact in binary.
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
frame_id contig chunk frame prediction p_other p_virus
c1_chunk_1F1 c1 1 F1 virus 0.25 0.75
c1_chunk_1R2 c1 1 R2 other 0.875 0.125
c1_chunk_2F3 c1 2 F3 virus 0 1
q"|/ö_chunk_1F2 q"|/ö 1 F2 other 0.5 0.5
q"|/ö_chunk_3F1 q"|/ö 3 F1 virus 0.25 0.75
q"|/ö_chunk_3R1 q"|/ö 3 R1 other 0.75 0.25
q"|/ö_chunk_3R3 q"|/ö 3 R3 other 0.625 0.375
broken_chunk_1F1 broken 1 F1 virus 0 1
tie_chunk_1F1 tie 1 F1 other 0.75 0.25
tie_chunk_1F2 tie 1 F2 other 0.5 0.5
"""
# 1200 bp in chunks of 500 are 300 too many: 100 for each of 3 chunks, and one more at the first 300 - 2 * 100 borders.
CHUNKS_TSV = """\
chunk_id contig start end frames status is_virus max_p_virus max_p_other
c1_chunk_1 c1 0 500 2 called False 0.75 0.875
c1_chunk_2 c1 250 501 1 called True 1 0
q"|/ö_chunk_1 q"|/ö 0 500 1 called True 0.5 0.5
q"|/ö_chunk_2 q"|/ö 399 899 0 no_open_frame NA NA NA
q"|/ö_chunk_3 q"|/ö 798 1200 3 called True 0.75 0.75
frameless_chunk_1 frameless 0 400 0 no_open_frame NA NA NA
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
frameless 400 1 0 no_open_frame NA NA
empty 0 0 0 too_short NA NA
two 2 1 0 too_short NA NA
broken 600 2 1 failed NA NA
tie 500 1 1 called False 0.4
"""


def write_embeddings(
    path: Path, records: Sequence[tuple[str, int, str]], rows: Sequence[tuple[int, int, int, float, float]]
) -> None:
    """Write a results file without matrices, which calls do not read."""
    ids, lengths, statuses = zip(*records, strict=True) if records else ((), (), ())
    names = [frame_id(ids[record], chunk, frame) for record, chunk, frame, *_ in rows]
    with Writer.create(path, "s", "contigs", 500) as writer:
        writer.append_records(ids, lengths, statuses)
        numbers = (np.array([row[column] for row in rows], np.int32) for column in range(3))
        writer.append_rows(names, [165] * len(rows), [bytes(32)] * len(rows), *numbers)
    with Writer.reopen(path, {}):
        pass


def classified(reader: Reader, rows: Sequence[tuple[int, int, int, float, float]]) -> Iterator[tuple[Rows, np.ndarray]]:
    """Give the probabilities in blocks of three."""
    probabilities = np.array([row[3:] for row in rows], np.float32)
    for number, block in enumerate(reader.blocks(block_rows=3)):
        yield block, probabilities[3 * number : 3 * number + 3]


def tabs(table: str) -> str:
    return table.replace(" ", "\t")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A directory with the embeddings and classified frames of the sample above."""
    write_embeddings(tmp_path / "embeddings.h5", RECORDS, FRAME_ROWS)
    with Reader(tmp_path / "embeddings.h5") as reader:
        calls.write_frames(tmp_path / "frames.tsv", classified(reader, FRAME_ROWS))
    return tmp_path


def call(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    names = ("embeddings.h5", "frames.tsv", "--chunks", "chunks.tsv", "--contigs", "contigs.tsv", *options)
    command = [sys.executable, str(SCRIPTS / "call_contigs.py"), *names]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_tables_are_those_computed_by_hand(sample: Path) -> None:
    assert call(sample).returncode == 0
    assert (sample / "frames.tsv").read_text() == tabs(FRAMES_TSV)
    assert (sample / "chunks.tsv").read_text() == tabs(CHUNKS_TSV)
    assert (sample / "contigs.tsv").read_text() == tabs(CONTIGS_TSV)
    assert sorted(path.name for path in sample.iterdir()) == [
        "chunks.tsv",
        "contigs.tsv",
        "embeddings.h5",
        "frames.tsv",
    ]


@pytest.mark.parametrize(
    ("threshold", "viruses"), [("0", "111"), ("0.4", "111"), ("0.41", "110"), ("0.51", "100"), ("1", "000")]
)
def test_the_threshold_decides_the_contigs(sample: Path, threshold: str, viruses: str) -> None:
    assert call(sample, "--threshold", threshold).returncode == 0
    lines = (sample / "contigs.tsv").read_text().splitlines()
    found = {cells[0]: cells[5] for cells in (line.split("\t") for line in lines)}
    assert [found[name] for name in ("c1", 'q"|/ö', "tie")] == [str(virus == "1") for virus in viruses]
    assert (sample / "chunks.tsv").read_text() == tabs(CHUNKS_TSV)


def random_sample(
    directory: Path, records: int = 400
) -> tuple[list[tuple[str, int, str]], list[tuple[int, int, int, float, float]]]:
    """Write a sample with many contigs, ties included, and return its records and rows."""
    random = np.random.default_rng(7)
    entries = [
        (f"r{random.integers(1000)}|{number}'\"", int(random.integers(3, 12000)), "ok") for number in range(records)
    ]
    rows = []
    for number, (_, length_bp, _) in enumerate(entries):
        for chunk in range(1, len(chunk_bounds(length_bp, 500)[0]) + 1):
            for frame in np.flatnonzero(random.random(6) < 0.2):
                p_virus = np.float32(random.choice([random.random(), 0.5, 1.0, 1e-9]))
                rows.append((number, chunk, int(frame), float(np.float32(1) - p_virus), float(p_virus)))
    write_embeddings(directory / "embeddings.h5", entries, rows)
    with Reader(directory / "embeddings.h5") as reader:
        calls.write_frames(directory / "frames.tsv", classified(reader, rows))
    return entries, rows


def test_virnucpro_files_and_contigs_equal_a_recomputation_with_pandas(tmp_path: Path) -> None:
    entries, rows = random_sample(tmp_path)
    assert call(tmp_path, "--virnucpro", "virnucpro").returncode == 0
    expected = pandas.DataFrame(
        {
            "Sequence_ID": [frame_id(entries[record][0], chunk, frame) for record, chunk, frame, *_ in rows],
            "Prediction": ["virus" if p_virus > p_other else "others" for *_, p_other, p_virus in rows],
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
    _, rows = random_sample(tmp_path, records=50)
    with Reader(tmp_path / "embeddings.h5") as reader:
        found = calls.read_probabilities(tmp_path / "frames.tsv", reader)
    np.testing.assert_array_equal(found, np.array([row[3:] for row in rows], np.float32))


def test_a_chunk_scores_a_half_or_more_exactly_when_it_is_a_virus() -> None:
    ones = np.float32(1)
    p_virus = np.array([0.5, np.nextafter(ones / 2, 0), np.nextafter(ones / 2, ones), 1e-30, 1], np.float32)
    p_other = np.array([0.5, 0.5, 0.5, 1, 0], np.float32)
    votes = calls.vote(np.arange(5), 5, np.stack([p_other, p_virus], axis=1))
    assert votes.is_virus.tolist() == (votes.score >= 0.5).tolist() == [True, False, True, False, True]


def test_frames_may_come_in_any_order() -> None:
    chunk = np.array([2, 0, 2, 0, 4])
    probabilities = np.array([[0.25, 0.75], [1, 0], [0.5, 0.5], [0, 1], [0.75, 0.25]], np.float32)
    votes = calls.vote(chunk, 5, probabilities)
    assert votes.frames.tolist() == [2, 0, 2, 0, 1]
    assert votes.max_p_other.tolist() == [1, 0, 0.5, 0, 0.75]
    assert votes.max_p_virus.tolist() == [1, 0, 0.75, 0, 0.25]
    count, score = calls.score_contigs(np.array([0, 0, 0, 1, 2]), 4, votes)
    assert count.tolist() == [2, 0, 1, 0]
    np.testing.assert_allclose(score, [(0.5 + 0.6) / 2, np.nan, 0.25, np.nan])


@pytest.mark.parametrize("records", [[], [("a", 400, "ok"), ("b", 0, "too_short")]])
def test_a_sample_without_frames_is_called(tmp_path: Path, records: list[tuple[str, int, str]]) -> None:
    write_embeddings(tmp_path / "embeddings.h5", records, [])
    with Reader(tmp_path / "embeddings.h5") as reader:
        calls.write_frames(tmp_path / "frames.tsv", classified(reader, []))
    result = call(tmp_path, "--virnucpro", "original")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "frames.tsv").read_text() == tabs(FRAMES_TSV.splitlines(keepends=True)[0])
    contigs = [line.split("\t") for line in (tmp_path / "contigs.tsv").read_text().splitlines()[1:]]
    expected = [["a", "400", "1", "0", "no_open_frame", "NA", "NA"], ["b", "0", "0", "0", "too_short", "NA", "NA"]]
    assert contigs == expected[: len(records)]
    assert (tmp_path / "original" / calls.VIRNUCPRO_CHUNKS).read_text() == "Modified_ID\tIs_Virus\n"
    assert (tmp_path / "original" / calls.VIRNUCPRO_FRAMES).read_text() == "Sequence_ID\tPrediction\tscore1\tscore2\n"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda table: table.replace("frame_id", "id", 1), "line 1: not a table of frames"),
        (lambda table: table.replace("c1_chunk_2F3", "c1_chunk_2F2"), "line 4: not the frame 'c1_chunk_2F3'"),
        (lambda table: "".join(table.splitlines(keepends=True)[:-1]), "line 10: does not fit"),
        (lambda table: table + table.splitlines(keepends=True)[-1], "line 11: does not fit"),
        (lambda table: table.replace("0.875", "many"), "line 3: does not fit"),
        (lambda table: table.replace("\t0.875", ""), "line 3: not the frame"),
        (lambda table: "", "line 1: not a table of frames"),
    ],
)
def test_frames_of_other_embeddings_are_refused(sample: Path, damage: Callable[[str], str], problem: str) -> None:
    path = sample / "frames.tsv"
    path.write_text(damage(path.read_text()))
    result = call(sample)
    assert result.returncode == 2
    assert f"frames.tsv, {problem}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (sample / "contigs.tsv").exists()


def test_missing_frames_wrong_threshold_and_wrong_kind_are_errors(sample: Path) -> None:
    paths = sample / "embeddings.h5", sample / "frames.tsv"
    outputs = sample / "chunks.tsv", sample / "contigs.tsv"
    with pytest.raises(ConfigError, match=r"threshold 1\.5"):
        calls.write_calls(*paths, 1.5, *outputs)
    paths[1].unlink()
    with pytest.raises(InputError, match="no such file"):
        calls.write_calls(*paths, 0.5, *outputs)
    with Writer.create(paths[0], "s", "proteins"):
        pass
    with Writer.reopen(paths[0], {}):
        pass
    with pytest.raises(InputError, match="its kind is proteins"):
        calls.write_calls(*paths, 0.5, *outputs)


def test_all_frame_names_have_two_letters() -> None:
    assert {len(name) for name in FRAMES} == {2}
