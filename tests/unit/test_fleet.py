"""When a device is given a batch."""

from pathlib import Path

import numpy as np
import pytest
from holdfast import fleet as fleets
from holdfast.batching import Batch, Queue
from holdfast.device import Device, Flight
from holdfast.fleet import Fleet
from holdfast.ledger import Ledger
from holdfast.settings import PoolSettings
from holdfast.worker import WorkerSettings

BUDGET_TOKENS = 100
ONE = Batch("esm2", np.zeros(1, int), np.zeros(1, int), np.ones(1, int))


def waiting(directory: Path, sequences: int) -> Ledger:
    """A ledger in which so many sequences of ten tokens wait."""
    ledger = Ledger({}, "fp32", directory, "p", BUDGET_TOKENS)
    queue = ledger.queues["esm2"] = Queue("esm2", BUDGET_TOKENS)
    queue.add(1, np.arange(sequences), np.full(sequences, 10, np.int32))
    return ledger


def new_device() -> Device:
    return Device(WorkerSettings("cpu:0", {}, "fp32", 1, "", 0.9, 0), max_tasks=None)


def new_fleet(*devices: Device) -> Fleet:
    fleet = Fleet(PoolSettings({}), {}, lambda *_: None, lambda _: None, lambda _: None)
    fleet.devices = list(devices)
    return fleet


@pytest.mark.parametrize(
    ("tokens", "more", "at_work", "given", "later"),
    [
        (30, False, False, 30, 30),  # nothing else is coming
        (30, True, False, 0, 30),  # something is, and may share the batch
        (130, True, False, 100, 100),  # full
        (30, False, True, 0, 0),  # what is in work comes first
        (130, True, True, 100, 100),
    ],
)
def test_a_batch_goes_out_full_or_when_little_is_gained_by_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: int, more: bool, at_work: bool, given: int, later: int
) -> None:
    def choose(linger_s: float) -> int:
        device, before = new_device(), Flight(ONE)
        device.flights.append(before)
        if not at_work:
            device.landed(before)
        monkeypatch.setattr(fleets, "LINGER_S", linger_s)
        flight = new_fleet(device).choose(device, waiting(tmp_path, tokens // 10), more)
        return flight.batch.tokens if flight else 0

    assert (choose(3600), choose(0)) == (given, later)


@pytest.mark.parametrize("alone", [True, False])
def test_a_suspect_gets_its_turn_although_full_batches_wait(tmp_path: Path, alone: bool) -> None:
    """On another device if there is one, and when that is empty."""
    ledger = waiting(tmp_path, 100)
    culprit, other = new_device(), new_device()
    taker = culprit if alone else other
    fleet = new_fleet(culprit) if alone else new_fleet(culprit, other)
    suspect = Flight(ONE, failures=1, last=culprit)
    fleet._again.append(suspect)
    busy = fleet.choose(culprit, ledger, False) if not alone else Flight(ONE)
    assert busy is not None
    assert not busy.failures
    taker.flights.append(busy)
    assert fleet.choose(taker, ledger, False) is None
    taker.landed(busy)
    assert fleet.choose(taker, ledger, False) is suspect
