"""The blocks of a pool against a dictionary: values stay equal, files stay as long as they are needed, no longer."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from holdfast.pool.blocks import BlockStore, gather
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

WIDTH = 3
NUMBERS = st.sets(st.integers(0, 15), min_size=1, max_size=6)


def digest(number: int) -> bytes:
    return hashlib.sha256(bytes([number % 256, number // 256])).digest()


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


def vectors(numbers: list[int]) -> np.ndarray:
    return np.array([vector(number) for number in numbers], np.float32).reshape(-1, WIDTH)


def fetched(store: BlockStore, numbers: list[int], rows: list[int], slab_rows: int = 4096) -> np.ndarray:
    paths, places = store.locate([digest(number) for number in numbers])
    slabs = list(gather(paths, places, np.array(rows, np.int64), slab_rows))
    return np.concatenate(slabs) if slabs else np.empty((0, WIDTH), np.float32)


class PoolLife(RuleBasedStateMachine):
    """Jobs of a pool come, wait for vectors, are written and go, as the supervisor has it."""

    dead = 0

    @initialize()
    def _start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = BlockStore(self.directory / "mine", WIDTH, "mine")
        self.waiting: dict[int, list[set[int]]] = {}
        self.jobs: list[set[int]] = []

    def teardown(self) -> None:
        """Remove the files of one run."""
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    @rule(numbers=NUMBERS)
    def _open_job(self, numbers: set[int]) -> None:
        self.jobs.append(numbers)
        for number in sorted(numbers):
            if not self.store.use(digest(number)):
                self.waiting.setdefault(number, []).append(numbers)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def _compute(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.waiting)), min_size=1, unique=True))
        uses = [len(self.waiting.pop(number)) for number in chosen]
        self.store.add([digest(number) for number in chosen], vectors(chosen), uses)

    def _complete(self) -> list[set[int]]:
        missing = [id(job) for jobs in self.waiting.values() for job in jobs]
        return [job for job in self.jobs if id(job) not in missing]

    @precondition(lambda self: self._complete())
    @rule(data=st.data())
    def _finish_job(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self._complete()) - 1))
        job = self._complete()[place]
        self.store.release([digest(number) for number in sorted(job)])
        self.jobs = [other for other in self.jobs if other is not job]
        if self.dead and not self.jobs:
            self.store.sweep()

    @invariant()
    def _complete_jobs_can_be_written(self) -> None:
        if hasattr(self, "jobs"):
            for job in self._complete():
                numbers = sorted(job)
                rows = [*range(len(numbers)), 0, *reversed(range(len(numbers)))]
                wanted = vectors([numbers[row] for row in rows])
                assert np.array_equal(fetched(self.store, numbers, rows, slab_rows=3), wanted)

    @invariant()
    def _files_go_with_the_jobs(self) -> None:
        if hasattr(self, "jobs") and not self.jobs:
            assert list((self.directory / "mine").glob("mine-*")) == []


class PoolLifeWithTakeOvers(PoolLife):
    """The same while blocks of dead pools are moved in, which may hold what this pool has or computes just now."""

    @rule(numbers=NUMBERS)
    def _take_over(self, numbers: set[int]) -> None:
        self.dead += 1
        other = BlockStore(self.directory / "other", WIDTH, f"dead{self.dead}")
        other.add([digest(number) for number in sorted(numbers)], vectors(sorted(numbers)), [1] * len(numbers))
        for path in (self.directory / "other").iterdir():
            path.rename(self.directory / "mine" / path.name)
        self.store.refresh()


LIMITS = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.reuse, Phase.generate],  # to shrink an example means thousands of fsyncs
)
TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = LIMITS
TestPoolLifeWithTakeOvers = PoolLifeWithTakeOvers.TestCase
TestPoolLifeWithTakeOvers.settings = LIMITS


def test_a_new_pool_finds_the_blocks_that_lie_there(tmp_path: Path) -> None:
    BlockStore(tmp_path, WIDTH, "dead").add([digest(1), digest(2)], vectors([1, 2]), uses=[1, 1])
    store = BlockStore(tmp_path, WIDTH, "mine")
    assert len(store) == 2
    assert store.use(digest(2))
    assert not store.use(digest(3))
    assert np.array_equal(fetched(store, [2], [0, 0]), vectors([2, 2]))
    store.release([digest(2)])
    assert os.listdir(tmp_path) == []
    assert (len(store), store.use(digest(1))) == (0, False)


def test_a_block_stays_while_anybody_uses_a_vector_of_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    store.add([digest(1), digest(2)], vectors([1, 2]), uses=[1, 1])
    assert store.use(digest(1))
    store.release([digest(1), digest(2)])
    assert np.array_equal(fetched(store, [1, 2], [1, 0]), vectors([2, 1]))
    store.release([digest(1)])
    assert os.listdir(tmp_path) == []


def test_a_vector_that_a_dead_pool_had_too_stays_for_all_who_use_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    store.add([digest(1)], vectors([1]), uses=[2])
    BlockStore(tmp_path, WIDTH, "dead").add([digest(1)], vectors([1]), uses=[1])
    store.refresh()
    store.release([digest(1)])
    assert np.array_equal(fetched(store, [1], [0]), vectors([1]))
    store.release([digest(1)])
    assert list(tmp_path.glob("mine-*")) == []


def test_a_vector_taken_over_while_it_is_computed_stays_for_all_who_use_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    assert not store.use(digest(1))
    BlockStore(tmp_path, WIDTH, "dead").add([digest(1)], vectors([1]), uses=[1])
    store.refresh()
    assert store.use(digest(1))
    store.add([digest(1)], vectors([1]), uses=[1])
    store.release([digest(1)])
    assert np.array_equal(fetched(store, [1], [0]), vectors([1]))
    store.release([digest(1)])
    store.sweep()
    assert list(tmp_path.glob("mine-*")) == []


def test_adopted_blocks_wait_for_their_jobs_while_others_end(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    store.add([digest(1)], vectors([1]), uses=[1])
    BlockStore(tmp_path, WIDTH, "dead").add([digest(2)], vectors([2]), uses=[1])
    store.refresh()
    store.release([digest(1)])
    assert not store.use(digest(1))
    assert store.use(digest(2))
    store.sweep()
    assert np.array_equal(fetched(store, [2], [0]), vectors([2]))
    store.release([digest(2)])
    assert list(tmp_path.glob("*.npy")) == []


def test_a_block_has_no_second_name_while_it_is_written(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    (tmp_path / ".dead-00000000.npy.7.partial").write_bytes(b"half")
    store.refresh()
    store.add([digest(1)], vectors([1]), uses=[1])
    assert sorted(os.listdir(tmp_path)) == [".dead-00000000.npy.7.partial", "mine-00000000.npy"]


def test_rows_are_gathered_from_many_blocks_in_their_order(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    numbers = list(range(600))
    for start in range(0, 600, 2):
        store.add(
            [digest(number) for number in numbers[start : start + 2]], vectors(numbers[start : start + 2]), [1, 1]
        )
    rows = np.random.default_rng(1).integers(0, 600, 2000).tolist()
    wanted = vectors(rows)
    for slab_rows in (1999, 4096):
        found = fetched(store, numbers, rows, slab_rows)
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted)


def test_a_sample_without_rows_needs_no_block(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    paths, places = store.locate([])
    assert (paths, places.shape) == ([], (0, 2))
    assert list(gather(paths, places, np.empty(0, np.int64))) == []


def test_a_sequence_without_a_vector_never_gets_that_of_another(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, WIDTH, "mine")
    store.add([digest(1)], vectors([1]), uses=[1])
    paths, places = store.locate([digest(2), digest(1)])
    assert places.tolist() == [[-1, -1], [0, 0]]
    assert np.array_equal(next(gather(paths, places, np.array([1]))), vectors([1]))
    with pytest.raises(ValueError, match="no vector"):
        next(gather(paths, places, np.array([1, 0])))
