"""How far pools and runs are: the arithmetic of time left, what becomes of a run."""

import dataclasses
import json
from pathlib import Path

import pytest
from holdfast.pool.hardware import read_sensors
from holdfast.run.watch import RunWatch, WatchedSample
from holdfast.spool import progress as module
from holdfast.spool.job import Receipt
from holdfast.spool.progress import JobProgress, Progress, Speed, WorkLeft
from holdfast.spool.spool import Spool
from holdfast.spool.state import Identity, state_path

from tests.spool.test_view import BUSY, DEVICE, publish


@pytest.mark.parametrize(
    ("pools", "unread", "expected"),
    [
        ([BUSY], [], WorkLeft(3000, 30.0, False)),
        ([BUSY, BUSY], [], WorkLeft(6000, 30.0, False)),  # replicas share the work
        ([BUSY], [("contigs", 400), ("contigs", 100)], WorkLeft(4000, 40.0, True)),  # 2 tokens a byte
        ([BUSY, Progress(tokens_per_s=100.0)], [("contigs", 500)], WorkLeft(4000, 20.0, True)),
        ([BUSY], [("proteins", 100)], WorkLeft(None, None, True)),  # no file of that kind was read yet
        ([BUSY], [("contigs", -1)], WorkLeft(None, None, True)),  # a file that is still to be made
        ([Progress(tokens_left=5)], [], WorkLeft(5, None, False)),
        ([Progress(tokens_per_s=5.0)], [], WorkLeft(0, 0.0, False)),
        ([], [], WorkLeft(0, 0.0, False)),
    ],
)
def test_time_left_is_tokens_left_by_tokens_a_second(
    pools: list[Progress], unread: list[tuple[str, int]], expected: WorkLeft
) -> None:
    assert module.work_left(pools, unread) == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3599, "1 h 0 min"), (90000, "1 d 1 h")],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert module.in_words(seconds) == words


def test_the_speed_is_that_of_the_last_minute_and_of_four_batches_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    speed = Speed()
    assert (speed.tokens_per_s(), speed.busy("cuda:0")) == (0.0, 0.0)
    for _ in range(4):  # slow batches: each counts until four others have come
        now += 100
        speed.add("cuda:0", 5000, 80.0)
    assert (speed.tokens_per_s(), speed.busy("cuda:0"), speed.busy("cuda:1")) == (50.0, 0.8, 0.0)
    now += 99  # the next is on its way
    assert speed.tokens_per_s() == 50.0
    now += 401  # the next is late
    assert speed.tokens_per_s() == 25.0
    for _ in range(200):
        now += 1
        speed.add("cuda:0", 300, 1.0)
    assert speed.tokens_per_s() == pytest.approx(300)
    assert speed.busy("cuda:0") == pytest.approx(1.0)
    speed.restart()
    assert speed.tokens_per_s() == 0.0


def test_a_run_sums_the_pools_that_work_for_the_run(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool").root
    esm2 = tmp_path / "esm2"
    samples = {}
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.fna").write_text("A" * 1000)
        (tmp_path / name).mkdir()
        samples[name] = WatchedSample(tmp_path / f"{name}.fna", "contigs", tmp_path / name / "receipt.json")
    Receipt(job="d-1", sample="d", state="failed", error="of an earlier run").write(tmp_path / "d" / "receipt.json")
    samples["d"] = dataclasses.replace(samples["d"])
    run = RunWatch(samples, spool, {"esm2": str(esm2)}, "auto", external=False)
    run.update()
    assert run.line() == ""
    external = RunWatch(samples, spool, {"esm2": str(esm2)}, "auto", external=True).line()
    assert external == f"0 of 4 samples done; no pool serves {spool} now, start one"
    publish(spool, 1, Progress(), state="starting")
    state_path(spool, "broken").write_text('{"beat": ')
    run.update()
    assert run.line() == "0 of 4 samples done; loading the models"

    job = JobProgress("a-1", "a", "contigs", "embedding", 3.0, 1000, 10, 4, 900, 400)
    reading = JobProgress("b-1", "b", "contigs", "reading", 3.0, 1000)
    publish(spool, 1, dataclasses.replace(BUSY, jobs=[job]))
    publish(spool, 2, dataclasses.replace(BUSY, jobs=[reading], devices=[DEVICE, DEVICE]))
    dead = dataclasses.replace(Identity.own(), host="gone", started=1)
    publish(spool, 3, BUSY, identity=dead)
    publish(spool, 4, BUSY, state="ended")
    run.update()
    # 6,000 tokens are read, b, c and d hold about 2,000 each, at 200 a second
    expected = "0 of 4 samples done, about 1 min left; 6 sequences, 200 tokens/s, 3 devices 50% busy"
    assert run.line() == expected

    esm2.mkdir()
    (esm2 / "model.json").write_text("no description")
    run.update()
    assert run.line() == expected
    for name, state in (("a", "done"), ("b", "failed")):
        outcome = Receipt(job=f"{name}-1", sample=name, state=state, counts={"sequences": 10, "rows": 12})
        outcome.write(samples[name].receipt)
    (tmp_path / "c" / "receipt.json").write_text("{")
    run.update()
    head = "1 of 4 samples done, 1 failed, about 50 s left; 10 sequences, 200 tokens/s"
    assert run.line() == f"{head}, 3 devices 50% busy"
    for name in ("c", "d"):
        Receipt(job=f"{name}-1", sample=name, state="done", counts={"sequences": 5}).write(samples[name].receipt)
    run.update()
    assert run.complete
    assert run.line().startswith("3 of 4 samples done, 1 failed; 20 sequences, ")


def test_pools_that_hold_other_weights_do_not_count(tmp_path: Path, models: dict[str, Path]) -> None:
    spool = Spool(tmp_path / "spool").root
    (tmp_path / "a.faa").write_text(">a\nMKV\n")
    (tmp_path / "a").mkdir()
    sample = WatchedSample(tmp_path / "a.faa", "proteins", tmp_path / "a" / "receipt.json")
    run = RunWatch({"a": sample}, spool, {"esm2": str(models["esm2"])}, "auto", external=False)
    publish(spool, 1, BUSY)
    run.update()
    assert run.pools == []
    mine = json.loads((models["esm2"] / "model.json").read_text())["weights_sha256"]
    publish(spool, 2, BUSY, models={"esm2": mine}, precision="fp16")
    right = publish(spool, 3, BUSY, models={"esm2": mine})
    run.update()
    assert run.pools == [right]


def test_without_a_gpu_there_are_no_readings() -> None:
    assert read_sensors("") is None
    assert read_sensors("GPU-00000000-0000-0000-0000-000000000000") is None
