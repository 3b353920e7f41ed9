"""The blocks of a pool against a dictionary: values stay equal, files stay as long as they are needed, no longer."""

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from holdfast.pool import blocks as module
from holdfast.pool.blocks import Block, BlockStore, gather, gather_residues, write_array, write_block
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors import safe_open

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
WIDTH = 3
MEAN, RESIDUES = "6/mean", "6/residues"
NUMBERS = st.sets(st.integers(0, 15), min_size=1, max_size=6)


def digest(number: int) -> bytes:
    return hashlib.sha256(bytes([number % 256, number // 256])).digest()


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


def vectors(numbers: list[int]) -> np.ndarray:
    return np.array([vector(number) for number in numbers], np.float32).reshape(-1, WIDTH)


def residues_of(number: int, dtype: str = "float16") -> np.ndarray:
    """Vectors of the residues of a sequence, from one to seven of them."""
    count = 1 + number % 7
    return np.random.default_rng(1000 + number).normal(size=(count, WIDTH)).astype(dtype)


def put(store: BlockStore, numbers: list[int], uses: list[int], dtype: str = "float16") -> Path:
    """Write a block as a worker does, and have the store take it in."""
    parts = [residues_of(number, dtype) for number in numbers]
    digests = [digest(number) for number in numbers]
    path = store.new_path()
    counts = np.array([len(part) for part in parts], np.int64)
    write_block(path, b"".join(digests), counts, {MEAN: vectors(numbers), RESIDUES: np.concatenate(parts)})
    store.add(path, digests, uses)
    return path


def fetched(store: BlockStore, numbers: list[int], rows: list[int], slab_rows: int = 4096) -> np.ndarray:
    paths, places = store.locate([digest(number) for number in numbers])
    slabs = list(gather(paths, places, np.array(rows, np.int64), MEAN, slab_rows))
    return np.concatenate(slabs) if slabs else np.empty((0, WIDTH), np.float32)


def fetched_residues(store: BlockStore, numbers: list[int], rows: list[int]) -> list[np.ndarray]:
    paths, places = store.locate([digest(number) for number in numbers])
    return list(gather_residues(paths, places, np.array(rows, np.int64), RESIDUES))


class PoolLife(RuleBasedStateMachine):
    """Jobs of a pool come, wait for vectors, are written and go, as the supervisor has it."""

    dead = 0

    @initialize()
    def _start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = BlockStore(self.directory / "mine", "mine")
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
        put(self.store, chosen, uses)

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
                (residues,) = fetched_residues(self.store, numbers, rows)
                assert np.array_equal(residues, np.concatenate([residues_of(numbers[row]) for row in rows]))

    @invariant()
    def _files_go_with_the_jobs(self) -> None:
        if hasattr(self, "jobs") and not self.jobs:
            assert list((self.directory / "mine").glob("mine-*")) == []


class PoolLifeWithTakeOvers(PoolLife):
    """The same while blocks of dead pools are moved in, which may hold what this pool has or computes just now."""

    @rule(numbers=NUMBERS)
    def _take_over(self, numbers: set[int]) -> None:
        self.dead += 1
        other = BlockStore(self.directory / "other", f"dead{self.dead}")
        put(other, sorted(numbers), [1] * len(numbers))
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
    put(BlockStore(tmp_path, "dead"), [1, 2], uses=[1, 1])
    store = BlockStore(tmp_path, "mine")
    assert len(store) == 2
    assert store.use(digest(2))
    assert not store.use(digest(3))
    assert np.array_equal(fetched(store, [2], [0, 0]), vectors([2, 2]))
    store.release([digest(2)])
    assert os.listdir(tmp_path) == []
    assert (len(store), store.use(digest(1))) == (0, False)


def test_a_block_stays_while_anybody_uses_a_vector_of_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    put(store, [1, 2], uses=[1, 1])
    assert store.use(digest(1))
    store.release([digest(1), digest(2)])
    assert np.array_equal(fetched(store, [1, 2], [1, 0]), vectors([2, 1]))
    store.release([digest(1)])
    assert os.listdir(tmp_path) == []


def test_a_vector_that_a_dead_pool_had_too_stays_for_all_who_use_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    put(store, [1], uses=[2])
    put(BlockStore(tmp_path, "dead"), [1], uses=[1])
    store.refresh()
    store.release([digest(1)])
    assert np.array_equal(fetched(store, [1], [0]), vectors([1]))
    store.release([digest(1)])
    assert list(tmp_path.glob("mine-*")) == []


def test_a_vector_taken_over_while_it_is_computed_stays_for_all_who_use_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    assert not store.use(digest(1))
    put(BlockStore(tmp_path, "dead"), [1], uses=[1])
    store.refresh()
    assert store.use(digest(1))
    put(store, [1], uses=[1])
    store.release([digest(1)])
    assert np.array_equal(fetched(store, [1], [0]), vectors([1]))
    store.release([digest(1)])
    store.sweep()
    assert list(tmp_path.glob("mine-*")) == []


def test_adopted_blocks_wait_for_their_jobs_while_others_end(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    put(store, [1], uses=[1])
    put(BlockStore(tmp_path, "dead"), [2], uses=[1])
    store.refresh()
    store.release([digest(1)])
    assert not store.use(digest(1))
    assert store.use(digest(2))
    store.sweep()
    assert np.array_equal(fetched(store, [2], [0]), vectors([2]))
    store.release([digest(2)])
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_block_has_no_second_name_while_it_is_written(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    (tmp_path / ".0123abcd.partial").write_bytes(b"half")
    store.refresh()
    put(store, [1], uses=[1])
    assert sorted(os.listdir(tmp_path)) == [".0123abcd.partial", "mine-00000001.safetensors"]


def test_rows_are_gathered_from_many_blocks_in_their_order(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    numbers = list(range(600))
    for start in range(0, 600, 2):
        put(store, numbers[start : start + 2], [1, 1])
    rows = np.random.default_rng(1).integers(0, 600, 2000).tolist()
    wanted = vectors(rows)
    for slab_rows in (1999, 4096):
        found = fetched(store, numbers, rows, slab_rows)
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted)


def test_a_sample_without_rows_needs_no_block(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    paths, places = store.locate([])
    assert (paths, places.shape) == ([], (0, 2))
    assert list(gather(paths, places, np.empty(0, np.int64), MEAN)) == []
    assert list(gather_residues(paths, places, np.empty(0, np.int64), RESIDUES)) == []


def test_a_sequence_without_a_vector_never_gets_that_of_another(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, "mine")
    put(store, [1], uses=[1])
    paths, places = store.locate([digest(2), digest(1)])
    assert places.tolist() == [[-1, -1], [0, 0]]
    assert np.array_equal(next(gather(paths, places, np.array([1]), MEAN)), vectors([1]))
    with pytest.raises(ValueError, match="no vector"):
        next(gather(paths, places, np.array([1, 0]), MEAN))
    with pytest.raises(ValueError, match="no vector"):
        next(gather_residues(paths, places, np.array([1, 0]), RESIDUES))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_block_is_read_back_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    path = put(BlockStore(tmp_path, "mine"), [3, 1, 20], [1, 1, 1], dtype)
    block = Block(path)
    assert block.digests == [digest(3), digest(1), digest(20)]
    assert block.array("residues").tolist() == [len(residues_of(number)) for number in (3, 1, 20)]
    assert np.array_equal(block.array(MEAN), vectors([3, 1, 20]))
    residues = block.array(RESIDUES)
    assert residues.dtype == dtype
    assert np.array_equal(residues, np.concatenate([residues_of(number, dtype) for number in (3, 1, 20)]))
    with safe_open(path, "numpy") as file:  # by the library that others would read it with
        assert np.array_equal(file.get_tensor(RESIDUES), residues)


def test_residues_come_in_the_order_of_rows_whatever_block_they_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLAB_RESIDUES", 20)
    store = BlockStore(tmp_path, "mine")
    numbers = list(range(300))
    for start in range(0, 300, 3):
        put(store, numbers[start : start + 3], [1, 1, 1])
    rows = np.random.default_rng(1).integers(0, 300, 1000).tolist()
    slabs = fetched_residues(store, numbers, rows)
    assert np.array_equal(np.concatenate(slabs), np.concatenate([residues_of(row) for row in rows]))
    sizes = [len(slab) for slab in slabs]
    assert min(sizes[:-1]) >= 20
    assert max(sizes) < 20 + 7


def test_a_row_longer_than_a_slab_is_one_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLAB_RESIDUES", 4)
    store = BlockStore(tmp_path, "mine")
    put(store, [6, 0, 13, 1], [1] * 4)  # of 7, 1, 7 and 2 residues
    slabs = fetched_residues(store, [6, 0, 13, 1], [1, 0, 2, 3, 1])
    assert [len(slab) for slab in slabs] == [8, 7, 3]
    wanted = [residues_of(number) for number in (0, 6, 13, 1, 0)]
    assert np.array_equal(np.concatenate(slabs), np.concatenate(wanted))


def test_residues_of_a_dead_pool_are_adopted_with_its_blocks(tmp_path: Path) -> None:
    put(BlockStore(tmp_path, "dead"), [2, 5], uses=[1, 1])
    store = BlockStore(tmp_path, "mine")
    assert store.use(digest(5))
    assert store.inherited(digest(5))
    put(store, [4], uses=[1])
    assert not store.inherited(digest(4))
    (found,) = fetched_residues(store, [4, 5], [1, 0, 1])
    assert np.array_equal(found, np.concatenate([residues_of(number) for number in (5, 4, 5)]))
    store.release([digest(5)])
    assert os.listdir(tmp_path) == ["mine-00000001.safetensors"]


FULL = """
import sys
from pathlib import Path
import numpy as np
from holdfast.pool.blocks import write_block
try:
    write_block(Path(sys.argv[1]), bytes(32), np.ones(1, np.int64), {"6/mean": np.ones((1, 100_000), np.float32)})
except OSError as error:
    print(error.errno)
"""


def test_a_block_that_does_not_fit_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """In a process that may write no file as large as this, which is what a full disk is to it."""
    (tmp_path / "blocks").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "blocks/mine-00000001.safetensors"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (0, f"{errno.EFBIG}\n"), ended.stderr
    assert os.listdir(tmp_path / "blocks") == []


def test_an_array_for_which_there_is_no_room_is_the_error_that_it_is() -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, open("/dev/full", "wb", 0) as file:
        write_array(file, np.zeros(1000))
    assert caught.value.errno == errno.ENOSPC
