"""When a device is given a batch."""

from pathlib import Path

import numpy as np
import pytest
from holdfast.models.registry import Output
from holdfast.pool import devices as module
from holdfast.pool.batches import Batch, Queue, Recipe
from holdfast.pool.devices import Devices, Dispatch
from holdfast.pool.ledger import Ledger
from holdfast.pool.settings import pool_settings

BUDGET_TOKENS = 100
RECIPE = Recipe("a" * 64, (Output(6, "mean"),), None, "")
ONE = Batch(RECIPE, np.zeros(1, int), np.zeros(1, int), np.ones(1, int))


def waiting(directory: Path, sequences: int) -> Ledger:
    """A ledger in which so many sequences of ten tokens wait."""
    ledger = Ledger({RECIPE.weights_sha256: BUDGET_TOKENS}, "fp32", directory, "p")
    queue = ledger.queues[RECIPE] = Queue(RECIPE, BUDGET_TOKENS)
    queue.add(1, np.arange(sequences), np.full(sequences, 10, np.int32))
    return ledger


def new_devices(count: int) -> Devices:
    """Devices without workers."""
    settings = pool_settings({"models": {"esm2": "/m"}}, "a test")
    devices = Devices(settings, {}, "fp32")
    devices.add([f"cpu:{number}" for number in range(count)])
    return devices


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
        devices = new_devices(1)
        (device,) = devices.devices
        device.at_worker.append(Dispatch(ONE))
        if not at_work:
            device.take_back()
        monkeypatch.setattr(module, "LINGER_S", linger_s)
        chosen = devices.choose(device, waiting(tmp_path, tokens // 10), more)
        return chosen.batch.tokens if chosen else 0

    assert (choose(3600), choose(0)) == (given, later)


@pytest.mark.parametrize("alone", [True, False])
def test_a_suspect_gets_its_turn_although_full_batches_wait(tmp_path: Path, alone: bool) -> None:
    """On another device if there is one, and when that is empty."""
    ledger = waiting(tmp_path, 100)
    devices = new_devices(1 if alone else 2)
    culprit, taker = devices.devices[0], devices.devices[-1]
    suspect = Dispatch(ONE, failures=1, last=culprit)
    devices._again.append(suspect)
    busy = Dispatch(ONE) if alone else devices.choose(culprit, ledger, False)
    assert busy is not None
    assert not busy.failures
    taker.at_worker.append(busy)
    assert devices.choose(taker, ledger, False) is None
    taker.take_back()
    assert devices.choose(taker, ledger, False) is suspect
