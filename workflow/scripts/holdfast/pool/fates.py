"""What becomes of a record before anything is embedded: embedded as it is, cut, in windows, or left out, and why."""

from typing import NamedTuple

from ..spool.job import Manifest


class Fate(NamedTuple):
    """What becomes of a record: its status, the letters that are used, and why."""

    status: str
    used: int
    reason: str


def judge(manifest: Manifest, length: int, problem: str = "") -> Fate:
    """What becomes of a record of so many letters: a codon is needed for ``contigs``, one letter otherwise.

    Where several models are asked, a record that one of them refuses is left out for all, so that rows stay equal.

    Args:
        manifest: The job.
        length: Letters.
        problem: What is wrong with the letters; empty where nothing is.
    """
    if problem:
        return Fate("bad_letters", 0, problem)
    if length < (3 if manifest.kind == "contigs" else 1):
        return Fate("too_short", 0, f"{length} letters")
    if manifest.kind == "contigs":
        return Fate("ok", length, "")
    longer = [
        (name, asked) for name, asked in manifest.models.items() if asked.max_length and length > asked.max_length
    ]
    reasons = {
        "refuse": ("too_long", "{name} takes {limit} at most (long: refuse)"),
        "truncate": ("truncated", "{name} saw the first {limit} (long: truncate)"),
        "window": ("windowed", "{name} saw overlapping windows of {limit} (long: window)"),
    }
    for policy, (status, reason) in reasons.items():
        if concerned := [(name, asked.max_length) for name, asked in longer if asked.long == policy]:
            used = {"refuse": 0, "truncate": min(limit for _, limit in concerned), "window": length}[policy]
            return Fate(status, used, "; ".join(reason.format(name=name, limit=limit) for name, limit in concerned))
    return Fate("ok", length, "")


def seen_letters(manifest: Manifest, name: str) -> int | None:
    """Letters of a sequence that a model sees at most; None for all."""
    asked = manifest.models[name]
    return asked.max_length if asked.long == "truncate" else None


def letters_for_all(manifest: Manifest) -> int | None:
    """Letters of a sequence that every model sees at most; None for all."""
    limits = [limit for name in manifest.models if (limit := seen_letters(manifest, name)) is not None]
    return min(limits, default=None)
