"""The files of the shared cache against a dictionary: what is found is what was put in, whoever writes or dies."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.errors import HoldfastError
from holdfast.pool import shelf as module
from holdfast.pool.access import ABANDONED_S, Access
from holdfast.pool.cache import Cache, manage, parse_size
from holdfast.pool.keys import Key, Origin
from holdfast.pool.segments import GAP_BYTES, Rows, Segment, SegmentError, prefixes
from holdfast.pool.shelf import CLASS_FACTOR, Shelf
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
MEAN = Key("ab" * 32, 5, "fp16", 6, "mean", None, "float32")
RESIDUES = Key("ab" * 32, 3, "fp16", 6, "residues", None, "float16")
PRIVATE = Access(None)
LONG_S = 600


def origin(run: str) -> Origin:
    return Origin(run, f"pool-{run}", "host", "user", "/spool", "0.1.0", "cd" * 32, "2026-11-26T00:00:00+00:00")


def vectors_of(key: Key, number: int) -> np.ndarray:
    """The vectors of a sequence: one, or those of its residues, from one to seven."""
    count = 1 + number % 7 if key.pooling == "residues" else 1
    return np.random.default_rng(number).normal(size=(count, key.width)).astype(key.dtype)


def described(numbers: Iterable[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Sequences in the order of their digests, with those, and their residues."""
    digests = {number: hashlib.sha256(number.to_bytes(8, "big")).digest() for number in numbers}
    ordered = sorted(digests, key=lambda number: digests[number])
    joined = np.frombuffer(b"".join(digests[number] for number in ordered), np.uint8).reshape(-1, 32)
    return ordered, joined, np.array([1 + number % 7 for number in ordered], np.int64)


def put(shelf: Shelf, numbers: Iterable[int], run: str = "first") -> None:
    ordered, digests, residues = described(numbers)
    rows = Rows(digests, residues, np.zeros(len(ordered), np.int32))
    slabs = (
        np.concatenate([vectors_of(shelf.key, number) for number in ordered[i : i + 7]])
        for i in range(0, len(ordered), 7)
    )
    shelf.add("synthetic:test", rows, [origin(run)], slabs)


def found(shelf: Shelf, numbers: Iterable[int]) -> dict[int, str]:
    """Which sequences are there, with the run that made them; their vectors are what was put in."""
    ordered, digests, residues = described(numbers)
    answer = shelf.read(digests, residues)
    runs = [entry.run for entry in answer.known]
    bounds = shelf.key.bounds(residues)
    for place in np.flatnonzero(answer.good).tolist():
        held = answer.vectors[bounds[place] : bounds[place + 1]]
        assert np.array_equal(held, vectors_of(shelf.key, ordered[place]))
    return {ordered[place]: runs[answer.origins[place]] for place in np.flatnonzero(answer.good).tolist()}


@pytest.mark.parametrize("key", [MEAN, RESIDUES])
def test_what_was_put_in_is_found_and_leads_to_its_run(tmp_path: Path, key: Key) -> None:
    shelf = Shelf(tmp_path, key, PRIVATE)
    assert found(shelf, range(10)) == {}
    put(shelf, range(0, 300, 2), "even")
    put(shelf, range(1, 300, 30), "odd")
    wanted = dict.fromkeys(range(0, 300, 2), "even") | dict.fromkeys(range(1, 300, 30), "odd")
    assert found(shelf, range(1000)) == wanted
    assert found(shelf, [2]) == {2: "even"}
    assert found(shelf, [3]) == {}
    ordered, digests, _ = described(range(1000))
    held = shelf.holds(digests).tolist()
    assert {number for number, is_held in zip(ordered, held, strict=True) if is_held} == wanted.keys()


def test_rows_that_lie_far_apart_are_found(tmp_path: Path) -> None:
    key = replace(RESIDUES, width=GAP_BYTES // 6)  # a row is further from the next but one than is read at once
    shelf = Shelf(tmp_path, key, PRIVATE)
    put(shelf, range(60))
    ordered = described(range(60))[0]
    assert found(shelf, ordered[::5]).keys() == set(ordered[::5])
    assert found(shelf, [ordered[0], ordered[-1]]).keys() == {ordered[0], ordered[-1]}


@pytest.mark.parametrize("key", [MEAN, RESIDUES])
def test_a_segment_is_a_safetensors_file(tmp_path: Path, key: Key) -> None:
    put(Shelf(tmp_path, key, PRIVATE), range(30))
    (path,) = tmp_path.glob("*/*")
    ordered, digests, residues = described(range(30))
    with safe_open(path, "numpy") as file:  # by the library that others would read it with
        assert np.array_equal(file.get_tensor("digests"), digests)
        assert file.get_tensor("residues").tolist() == residues.tolist()
        assert np.array_equal(
            file.get_tensor("vectors"), np.concatenate([vectors_of(key, number) for number in ordered])
        )
        told = file.metadata()
    assert json.loads(told["key"])["pooling"] == key.pooling
    assert [entry["run"] for entry in json.loads(told["origins"])] == ["first"]


@pytest.mark.parametrize(
    "changed",
    [
        {"weights_sha256": "ab" * 31 + "ac"},
        {"precision": "bf16"},
        {"layer": 5},
        {"pooling": "max"},
        {"pooling": "cls"},
        {"window": 1022},
        {"method": 2},
    ],
)
def test_vectors_of_another_key_are_never_given(tmp_path: Path, changed: dict[str, Any]) -> None:
    put(Shelf(tmp_path, MEAN, PRIVATE), range(30))
    other = Shelf(tmp_path, replace(MEAN, **changed), PRIVATE)
    assert found(other, range(30)) == {}
    (path,) = tmp_path.glob("*/*")
    other.directory.mkdir()
    os.link(path, other.directory / path.name)  # as somebody might who tidies up
    assert found(other, range(30)) == {}
    assert found(Shelf(tmp_path, MEAN, PRIVATE), range(30)).keys() == set(range(30))


@pytest.mark.parametrize("key", [MEAN, RESIDUES])
def test_a_row_with_any_byte_damaged_is_not_found_and_can_be_put_in_again(tmp_path: Path, key: Key) -> None:
    shelf = Shelf(tmp_path, key, PRIVATE)
    put(shelf, range(4))
    (path,) = tmp_path.glob("*/*")
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    lost = set()
    for place in range(begin, len(content)):
        module._prefixes.clear()
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        kept = found(shelf, range(4)).keys()  # which also compares the vectors
        assert kept < set(range(4)), f"byte {place - begin} was damaged, and nothing noticed it"
        lost |= set(range(4)) - kept
    assert lost == set(range(4))
    put(shelf, range(4), "second")
    assert found(shelf, range(4)).keys() == set(range(4))


def test_a_file_that_is_no_segment_is_passed_over(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, RESIDUES, PRIVATE)
    put(shelf, range(4))
    (path,) = tmp_path.glob("*/*")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])

    def changed(**entries: Any) -> bytes:
        text = json.dumps(header | entries).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    metadata = header["__metadata__"]
    hostile = [
        b"",
        b"\0" * 7,
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        content[: 8 + length],
        content[:-1],
        changed(digests={**header["digests"], "shape": [4, 33]}),
        changed(digests={**header["digests"], "shape": [-4, -32]}),
        changed(digests={**header["digests"], "shape": [2**62, 32], "data_offsets": [0, 2**67]}),
        changed(vectors={**header["vectors"], "dtype": "O"}),
        changed(vectors={**header["vectors"], "data_offsets": [-8, 10]}),
        changed(vectors={**header["vectors"], "data_offsets": [0.0, 10.0]}),
        changed(offsets=None),
        changed(other=header["offsets"]),
        changed(__metadata__={}),
        changed(__metadata__={**metadata, "key": "null"}),
        changed(__metadata__={**metadata, "key": json.dumps(json.loads(metadata["key"]) | {"width": -1})}),
        changed(__metadata__={**metadata, "key": json.dumps(json.loads(metadata["key"]) | {"dtype": "object"})}),
        changed(__metadata__={**metadata, "origins": "[1]"}),
        changed(__metadata__={**metadata, "origins": "[" * 5000}),
        changed(__metadata__={**metadata, "origins": "[]"}),
    ]
    for number, text in enumerate(hostile):
        module._prefixes.clear()
        path.write_bytes(text)
        assert found(shelf, range(4)) == {}, number
    path.unlink()
    os.mkfifo(path)  # to open it for reading would wait for ever
    assert found(shelf, range(4)) == {}
    path.unlink()
    path.symlink_to("/dev/zero")
    assert found(shelf, range(4)) == {}
    put(shelf, range(4))
    assert found(shelf, range(4)).keys() == set(range(4))


def test_small_segments_become_larger_ones_that_hold_each_sequence_once(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, RESIDUES, PRIVATE)
    for number in range(CLASS_FACTOR - 1):
        put(shelf, range(number * 10, number * 10 + 15), f"run{number}")
    assert len(shelf.segments()) == CLASS_FACTOR - 1
    damaged = shelf.segments()[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")  # of the sequence with the largest digest in it
    with Segment(damaged) as segment:
        last = segment.take("digests", np.array([segment.count - 1]))
    (lost,) = (number for number in range(100) if np.array_equal(described([number])[1], last))
    elsewhere = sum(lost in range(number * 10, number * 10 + 15) for number in range(CLASS_FACTOR - 1)) - 1
    put(shelf, range(200, 205), "last")
    (path,) = shelf.segments()
    everything = {*range((CLASS_FACTOR - 2) * 10 + 15), *range(200, 205)}
    assert found(shelf, range(300)).keys() == everything - (set() if elsewhere else {lost})
    with Segment(path) as segment:
        assert segment.count == len(found(shelf, range(300)))
        assert {entry.run for entry in segment.origins} >= {"last"}
        assert (np.diff(segment.prefixes().astype(object)) > 0).all()
    runs = found(shelf, range(300))
    assert all(
        run == "last" if number >= 200 else number in range(int(run[3:]) * 10, int(run[3:]) * 10 + 15)
        for number, run in runs.items()
    )


def test_what_is_merged_or_evicted_while_it_is_looked_for_is_looked_for_again(tmp_path: Path) -> None:
    """The directory as it was listed holds segments that have become one since."""
    shelf = Shelf(tmp_path, MEAN, PRIVATE)
    for number in range(CLASS_FACTOR - 1):
        put(shelf, [number])
    before = shelf.segments()
    put(shelf, [CLASS_FACTOR])
    listings = [before]
    now = shelf.segments
    shelf.segments = lambda: listings.pop() if listings else now()  # type: ignore[method-assign]
    _, digests, residues = described(range(CLASS_FACTOR - 1))
    assert shelf.read(digests, residues).good.all()


WRITER = """
import sys, time
sys.path.insert(0, {scripts!r})
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.pool.test_shelf import MEAN, RESIDUES, described, found, put
from holdfast.pool.cache import Cache
from holdfast.pool.shelf import Shelf
directory, first, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cache = Cache.open(directory, create=True)
print("ready", flush=True)
for number in range(first, first + rounds):
    for key in (MEAN, RESIDUES):
        shelf = Shelf(directory, key, cache.access)
        put(shelf, range(number * 10, number * 10 + 15), f"run{{number}}")
        found(shelf, range(first * 10, number * 10 + 15))
    cache.evict()
"""


Writer = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def writer() -> Iterator[Writer]:
    """Start processes that put vectors in and look for them, over and over; every vector that they find is compared."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path, first: int, rounds: int, umask: int = 0o022) -> "subprocess.Popen[str]":
        code = WRITER.format(scripts=str(ROOT / "workflow/scripts"), root=str(ROOT))
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(directory), str(first), str(rounds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=umask,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=LONG_S)
    assert (process.returncode, errors) == (0, "")


def test_twenty_processes_share_a_cache(tmp_path: Path, writer: Writer) -> None:
    writers = [writer(tmp_path / "cache", 5 * number, 5) for number in range(20)]
    for process in writers:
        ended(process)
    for key in (MEAN, RESIDUES):
        shelf = Shelf(tmp_path / "cache", key, PRIVATE)
        assert found(shelf, range(1005)).keys() == set(range(1005))
        assert len(shelf.segments()) < 20
    assert list((tmp_path / "cache").rglob("*.partial")) == []
    assert list(Cache.open(tmp_path / "cache").verify()) == []


def test_a_cache_is_one_for_all_who_begin_it_together(tmp_path: Path) -> None:
    """Each makes a shelf in it at once, which none of the others may take for a directory of somebody else."""
    together, rounds = 8, 100
    start = threading.Barrier(together)

    def begin(_: int) -> None:
        for number in range(rounds):
            start.wait(LONG_S)
            Cache.open(tmp_path / str(number), create=True).access.make_directory(tmp_path / str(number) / MEAN.name)

    with ThreadPoolExecutor(together) as pool:
        assert list(pool.map(begin, range(together))) == [None] * together


def test_eviction_under_load_takes_files_and_harms_nobody(tmp_path: Path, writer: Writer) -> None:
    cache = Cache.open(tmp_path / "cache", create=True)
    cache.set_limit(40_000)
    writers = [writer(tmp_path / "cache", 100 * number, 20) for number in range(4)]
    for process in writers:
        ended(process)
    assert sum(entry.size_bytes for entry in cache.entries()) <= 40_000
    held = found(Shelf(tmp_path / "cache", MEAN, PRIVATE), range(4000))
    assert 0 < len(held) < 4 * 205
    assert list(cache.verify()) == []


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path: Path, writer: Writer) -> None:
    cache = Cache.open(tmp_path / "cache", create=True)
    for number in range(6):
        process = writer(tmp_path / "cache", 10**6 * number, 10**5)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.03 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(cache.verify()) == []
    shelf = Shelf(tmp_path / "cache", MEAN, PRIVATE)
    left = tmp_path / "cache" / MEAN.name / f".{'0' * 32}.partial"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    young = left.with_name(f".{'1' * 32}.partial")
    young.write_bytes(b"half")
    long_ago = time.time() - ABANDONED_S - 60
    os.utime(left, (long_ago, long_ago))
    put(shelf, range(5))
    assert found(shelf, range(5)).keys() == set(range(5))
    assert (left.exists(), young.exists()) == (False, True)


def test_what_was_of_use_last_stays(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "cache", create=True)
    shelf = Shelf(cache.directory, MEAN, cache.access)
    for number in range(5):
        put(shelf, range(number * 100, number * 100 + 100))
        long_ago = time.time() - 10**5 + number
        for path in shelf.segments():
            if path.stat().st_mtime > long_ago + 50_000:
                os.utime(path, (long_ago, long_ago))
    assert len(shelf.segments()) == 5
    assert found(shelf, [0]).keys() == {0}  # which makes the oldest the youngest
    size_bytes = cache.entries()[0].size_bytes
    assert cache.prune(2 * size_bytes + 100) == 3
    assert found(shelf, range(500)).keys() == {*range(100), *range(400, 500)}
    cache.set_limit(3 * size_bytes)
    put(shelf, range(500, 600))
    cache.evict()
    assert len(shelf.segments()) == 3
    put(shelf, range(600, 700))
    cache.evict()  # to 90 %, so to two
    assert len(shelf.segments()) == 2
    assert {*range(500, 700)} <= found(shelf, range(700)).keys() | {*range(100)}


@pytest.mark.parametrize("umask", [0o077, 0o002])
@pytest.mark.parametrize("shared", [True, False])
def test_modes_are_those_of_the_cache_whatever_the_umask(
    tmp_path: Path, writer: Writer, umask: int, shared: bool
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    directory.chmod(0o2770 if shared else 0o700)
    group = 12345 if os.getuid() == 0 else os.getgid()
    os.chown(directory, -1, group)
    directory.chmod(0o2770 if shared else 0o700)
    ended(writer(directory, 0, CLASS_FACTOR + 1, umask))
    made = list(directory.rglob("*"))
    assert len(made) > 5
    for path in made:
        status = path.stat()
        wanted = (0o2770 if shared else 0o700) if path.is_dir() else (0o660 if shared else 0o600)
        assert stat.S_IMODE(status.st_mode) == wanted, path
        assert not shared or status.st_gid == group


def test_a_directory_that_cannot_be_a_cache_is_refused(tmp_path: Path) -> None:
    everybody = tmp_path / "everybody"
    everybody.mkdir()
    everybody.chmod(0o1777)
    with pytest.raises(HoldfastError, match="everybody may write to this cache; chmod o-w it"):
        Cache.open(everybody, create=True)
    weights = tmp_path / "weights"
    (weights / "esm2").mkdir(parents=True)
    (weights / "esm2/model.safetensors").write_bytes(b"precious")
    with pytest.raises(HoldfastError, match=r"is no cache of vectors, cache\.json is missing; name an empty directory"):
        Cache.open(weights, create=True)
    with pytest.raises(HoldfastError, match="no cache; name the directory"):
        Cache.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(HoldfastError, match="is it another directory"):
        Cache.open(weights)
    newer = Cache.open(tmp_path / "newer", create=True)
    (newer.directory / "cache.json").write_text('{"format": "holdfast-cache", "format_version": 2, "limit_bytes": 1}')
    with pytest.raises(HoldfastError, match=r"format 2, .* reads 1; a newer one wrote it: update Holdfast, or"):
        Cache.open(newer.directory)
    (newer.directory / "cache.json").write_text("{")
    with pytest.raises(HoldfastError, match="cannot be used"):
        Cache.open(newer.directory, create=True)


def test_nothing_but_segments_is_ever_removed(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "cache", create=True)
    put(Shelf(cache.directory, MEAN, cache.access), range(10))
    others = [cache.directory / "esm2/model.safetensors", cache.directory / MEAN.name / "notes.safetensors"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"precious")
    assert list(cache.verify()) == []
    assert cache.prune(0) == 1
    assert all(path.read_bytes() == b"precious" for path in others)


def test_the_command_says_what_is_there_and_does_what_it_is_asked(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "cache", create=True)
    for key in (MEAN, replace(RESIDUES, window=1022)):
        put(Shelf(cache.directory, key, cache.access), range(100))
    first, *shelves = manage(cache.directory, "2.5TB", None, True)
    assert first.startswith(f"{cache.directory}: 200 vectors, ")
    assert first.endswith(" of 2.5 TB")
    assert [line.partition(" vectors")[0] for line in shelves] == [
        "synthetic:test (abababababab), fp16, 6/mean: 100",
        "synthetic:test (abababababab), fp16, 6/residues, windows of 1022: 100",
    ]
    (damaged,) = cache.directory.glob(f"{MEAN.name}/*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    said = list(manage(cache.directory, None, None, True))
    assert said[0] == f"{damaged}: 1 of 100 vectors are damaged; removed"
    assert len(said) == 3
    assert next(manage(cache.directory, None, "1kB", False)) == "1 files removed"
    assert Cache.open(cache.directory).description().limit_bytes == 2_500_000_000_000


@pytest.mark.parametrize("text", ["", "500", "GB", "-1GB", "5 PB", "1e3GB", "1,5TB", "٣GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(HoldfastError, match="is no size; write it as 500GB or 2TB"):
        parse_size(text)


def test_sizes_are_decimal() -> None:
    assert [parse_size(text) for text in ("1kB", "1.5 MB", "500GB")] == [1000, 1_500_000, 500 * 10**9]


def test_prefixes_order_as_digests_do() -> None:
    digests = np.random.default_rng(1).integers(0, 256, (1000, 32)).astype(np.uint8)
    ordered = sorted(digest.tobytes() for digest in digests)
    assert [row.tobytes() for row in digests[np.argsort(prefixes(digests))]] == ordered


def test_a_segment_that_shrinks_while_it_is_open_is_an_error_that_is_caught(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, MEAN, PRIVATE)
    put(shelf, range(50))
    (path,) = shelf.segments()
    with Segment(path) as segment:
        os.truncate(path, 2000)
        with pytest.raises(SegmentError, match="ends too early"):
            segment.take("vectors", np.arange(50))
    assert found(shelf, range(50)) == {}
