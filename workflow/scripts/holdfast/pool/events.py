"""What becomes of the batches that devices were sent, for the ledger to know."""

from dataclasses import dataclass
from pathlib import Path

from .batches import Batch


@dataclass(frozen=True)
class Embedded:
    """A batch has come back: where its block is, and the seconds that its device worked."""

    batch: Batch
    path: Path
    seconds: float


@dataclass(frozen=True)
class TooLarge:
    """A device has no memory for a batch of several sequences, which will be tried again in halves."""

    batch: Batch
    device: str


@dataclass(frozen=True)
class GivenUp:
    """The one sequence of a batch cannot be embedded: the status of its record, and why."""

    batch: Batch
    status: str
    reason: str


Event = Embedded | TooLarge | GivenUp
