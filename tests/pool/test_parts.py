"""Large samples: read, embedded and written in parts, by one pool or several, with the result of a sample in one piece.

A part is a hundred thousand records; here it is fifty, so that a sample of some hundred has several. The processes of
these pools get that constant through ``sitecustomize.py``.
"""

import gzip
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from holdfast.results.embeddings import Embeddings, read_embeddings
from holdfast.spool.job import Receipt

from tests.pool.conftest import DATA, SCRIPTS, ServedPool, job, submit

RECORDS = 205
CONSTANTS = """
import sys
sys.path.insert(0, {scripts!r})
import holdfast.pool.part as part
import holdfast.sequences.ids as ids
part.PART_RECORDS, part.BLOCK_ROWS, ids.CHECKED_AT_ONCE = 50, 10, 7
"""


@pytest.fixture
def small_parts(tmp_path: Path) -> dict[str, str]:
    """Variables of processes in which a part is fifty records."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/sitecustomize.py").write_text(CONSTANTS.format(scripts=str(SCRIPTS)))
    return {"PYTHONPATH": str(tmp_path / "parts")}


def many_proteins(path: Path, records: int = RECORDS, length: int = 12) -> Path:
    """Short proteins, some twice, some with a stop at the end, one with a letter that is none, one empty."""
    random = np.random.default_rng(1)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    texts = ["".join(random.choice(letters, length + number % 7)) for number in range(records)]
    texts[60] = texts[120] = texts[3]
    texts[70] += "*"
    texts[110] = "MK1V"
    texts[160] = ""
    path.write_text("".join(f">p{number}\n{text}\n" for number, text in enumerate(texts)))
    return path


def compare(one: Embeddings, parted: Embeddings) -> None:
    """All that a file holds, but for the names of programs."""
    assert parted.ids == one.ids
    for name in ("length", "sha256", "record", "chunk", "frame"):
        assert np.array_equal(getattr(parted, name), getattr(one, name))
    assert parted.records.ids == one.records.ids
    assert parted.records.status == one.records.status
    assert np.array_equal(parted.records.residues_used, one.records.residues_used)
    assert parted.matrices.keys() == one.matrices.keys()
    for name, values in one.matrices.items():
        np.testing.assert_allclose(parted.matrices[name], values, rtol=1e-5, atol=1e-5)
    assert parted.residues.keys() == one.residues.keys()
    for name, entries in one.residues.items():
        assert len(parted.residues[name]) == len(entries)
        for found, wanted in zip(parted.residues[name], entries, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert parted.attributes == one.attributes


def records_of(outcome: Receipt) -> str:
    return Path(outcome.embeddings).with_name("records.tsv").read_text()


def test_a_sample_in_parts_is_the_same_as_in_one_piece(
    serve: Callable[..., ServedPool], small_parts: dict[str, str], tmp_path: Path, models: dict[str, Path]
) -> None:
    proteins = many_proteins(tmp_path / "p.faa")
    (tmp_path / "c.fna").write_text(
        "".join(
            f">c{number}\n{'ACGTTGCAACGGTCCA' * 40}{'GC' * number}\n{'' if number % 9 else 'TTAA'}\n"
            for number in range(120)
        )
    )
    jobs = [
        job(models, "p", proteins, "proteins", layers=[0, "last"], pooling=["mean", "residues"]),
        job(models, "c", tmp_path / "c.fna", "contigs"),
        job(models, "d", DATA / "phage_heldout.fna", "dna"),
    ]
    whole = submit(serve("whole"), *jobs)
    pool = serve("parted", environment=small_parts)
    parted = submit(pool, *jobs)
    for name, outcome in parted.items():
        assert (outcome.state, outcome.error) == ("done", "")
        compare(read_embeddings(whole[name].embeddings), read_embeddings(outcome.embeddings))
        assert records_of(outcome) == records_of(whole[name])
        same = {key: whole[name].counts[key] for key in ("records", "rows", "ok", "bad_letters", "too_short")}
        assert {key: outcome.counts[key] for key in same} == same
        assert outcome.warnings == whole[name].warnings
    text = pool.log.read_text()
    assert text.count("p, part ") == 5
    assert text.count("c, part ") == 3
    assert "d, part" not in text
    assert list((pool.spool_path / "parts").iterdir()) == []
    pool.eventually(lambda: pool.state.progress.done == len(jobs))


@pytest.mark.parametrize("what", ["an id that is there twice", "a file that is cut short"])
def test_what_is_wrong_with_a_large_file_is_said_before_anything_is_computed(
    serve: Callable[..., ServedPool], small_parts: dict[str, str], tmp_path: Path, models: dict[str, Path], what: str
) -> None:
    path = many_proteins(tmp_path / "p.faa")
    if what == "an id that is there twice":
        path.write_text(path.read_text().replace(">p190\n", ">p20\n"))
        wanted = f"{path}, line 381, record 'p20': the id is that of line 41 too; rename one of the records"
    else:
        packed = gzip.compress(path.read_bytes(), mtime=0)
        path = tmp_path / "p.faa.gz"
        path.write_bytes(packed[:-300])
        wanted = f"{path}: the compressed file is damaged or cut short"
    pool = serve(environment=small_parts)
    outcome = submit(pool, job(models, "p", path, "proteins"))["p"]
    assert outcome.error.startswith(wanted)
    assert pool.state.progress.batches == 0
    assert list((pool.spool_path / "parts").iterdir()) == []


def test_a_pool_that_was_killed_costs_no_part_that_was_done(
    serve: Callable[..., ServedPool], small_parts: dict[str, str], tmp_path: Path, models: dict[str, Path]
) -> None:
    entry = job(models, "p", many_proteins(tmp_path / "p.faa", length=240), "proteins")
    whole = submit(serve("whole"), entry)["p"]
    pool = serve("killed", environment=small_parts, tokens_per_batch=64)
    pool.spool.submit(entry)
    done = pool.spool_path / "parts" / entry.job
    pool.eventually(lambda: any(done.glob("*/receipt.json")))
    os.kill(pool.process.pid, signal.SIGKILL)
    pool.process.wait()
    kept = {path: path.stat().st_mtime_ns for path in done.glob("*/receipt.json")}
    assert 0 < len(kept) < 5
    again = serve("again", environment=small_parts, spool=pool.spool_path)
    outcome = submit(again, entry)["p"]
    again.eventually(lambda: not done.exists())
    compare(read_embeddings(whole.embeddings), read_embeddings(outcome.embeddings))
    log = again.log.read_text()
    assert log.count("p, part ") == 5 - len(kept)


def test_pools_share_the_parts_of_one_sample(
    serve: Callable[..., ServedPool], small_parts: dict[str, str], tmp_path: Path, models: dict[str, Path]
) -> None:
    entry = job(models, "p", many_proteins(tmp_path / "p.faa", 800, 60), "proteins")
    first = serve("first", environment=small_parts, tokens_per_batch=256)
    second = serve("second", environment=small_parts, tokens_per_batch=256, spool=first.spool_path)
    second.eventually(lambda: second.state.state == "ready")
    first.eventually(lambda: first.state.state == "ready")
    outcome = submit(first, entry)["p"]
    assert outcome.state == "done"
    counts = [pool.log.read_text().count("p, part ") for pool in (first, second)]
    assert sum(counts) == 16
    assert min(counts) > 0
    whole = submit(serve("whole"), entry)["p"]
    compare(read_embeddings(whole.embeddings), read_embeddings(outcome.embeddings))
    assert outcome.counts["records"] == 800
