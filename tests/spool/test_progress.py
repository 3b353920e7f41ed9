"""The pace of a pool: what is kept of it, and how little."""

import itertools
import os
from pathlib import Path

import pytest
from holdfast.errors import ResourceError
from holdfast.spool.progress import MOMENTS, POOLS_KEPT, History, Moment, read_moments


def test_idleness_is_kept_and_a_batch_in_work_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "pool.tsv"
    noted = History(path)
    noted.note(Moment(100.0, 1, 0, 0.0), at_work=False)
    for second in range(1, 5):
        noted.note(Moment(100.0 + second, 1, 0, 0.0), at_work=True)
    noted.note(Moment(105.0, 1, 4000, 4.5), at_work=True)
    for second in range(6, 60):
        noted.note(Moment(100.0 + second, 1, 4000, 4.5), at_work=False)
    noted.note(Moment(160.0, 2, 9000, 5.25), at_work=False)
    assert [(moment.time_s, moment.tokens) for moment in noted.moments] == [
        (100.0, 0),
        (105.0, 4000),
        (159.0, 4000),
        (160.0, 9000),
    ]
    assert read_moments(path) == noted.moments


def test_a_night_stays_small_and_keeps_its_first_and_last_moment(tmp_path: Path) -> None:
    noted = History(tmp_path / "pool.tsv")
    for second in range(5000):
        noted.note(Moment(float(second), 4, second * 1000, second * 3.5), at_work=True)
    noted.write()
    found = read_moments(noted.path)
    assert MOMENTS / 2 <= len(found) <= MOMENTS
    assert (found[0].time_s, found[-1].time_s) == (0, 4999)
    gaps = [after.time_s - before.time_s for before, after in itertools.pairwise(found)]
    assert max(gaps[:-1]) <= noted.interval_s == 16
    assert all(moment.tokens == moment.time_s * 1000 for moment in found)


def test_only_the_records_of_the_last_pools_stay(tmp_path: Path) -> None:
    for number in range(POOLS_KEPT + 7):
        old = tmp_path / f"pool-{number}.tsv"
        old.touch()
        os.utime(old, (number, number))
    History(tmp_path / "new.tsv")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"pool-{number}.tsv" for number in range(7, POOLS_KEPT + 7)}


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    assert read_moments(tmp_path / "none.tsv") == []
    broken = tmp_path / "broken.tsv"
    broken.write_text("time_s\tdevices\n1\tmany\n")
    with pytest.raises(ResourceError, match=r"broken\.tsv: not the record of a pool"):
        read_moments(broken)
