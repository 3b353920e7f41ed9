"""The spool: a directory through which jobs reach pools, as in Maildir.

``incoming/JOB.json`` is a submitted manifest; ``claimed/POOL/JOB.json`` one that a pool took, by rename, so that no
two pools ever take the same; ``done/JOB/`` holds the embeddings and the receipt of a finished job, ``failed/JOB/``
the receipt of a failed one. ``parts/JOB/NUMBER/`` is a part of a large sample, read, and later done: a job that any
pool may take, while one has the job of the whole. ``work/POOL/`` and ``blocks/POOL/`` are a pool's own,
``pools/POOL.json`` its state (see :mod:`.state`). ``format`` says for which versions of this package the spool is.
Nothing outside the spool is ever written because of a manifest, and every host may see the spool at a path of its own.
"""

import os
import re
import shutil
import stat as modes
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..documents import other_version
from ..errors import ResourceError
from ..files import atomic_text, sync_directory
from .job import (
    FORMAT_VERSION,
    MANIFEST_LIMIT_BYTES,
    PART_PATTERN,
    Manifest,
    ManifestError,
    Receipt,
    parse_manifest,
    read_receipt,
)
from .state import Observer, PoolState, published_states

DIRECTORIES = ("incoming", "claimed", "done", "failed", "work", "parts", "blocks", "pools")
RESULT = ("embeddings.h5", "records.tsv", "receipt.json")
"""What is left of a job that is done."""
COUNTS_FILE = "counts.json"
"""In a part, what was found in it: kept, so that its records need not be read again."""
FORMAT_FILE = "format"
PRECISION_FILE = "precision"


class Spool:
    """A spool on disk; the methods are safe against any number of pools and consumers at once."""

    def __init__(self, root: str | Path) -> None:
        """Open the spool at ``root``, creating it (mode 0700) if it is not there.

        Raises:
            ResourceError: it belongs to another user, others may write to it, it cannot be created, or another version
                of this package made it that does not understand this one.
        """
        self.root = Path(root).absolute()
        try:
            _make_own(self.root)
            self._check_format()
            for name in DIRECTORIES:
                _make_own(self.root / name)
        except OSError as error:
            reason = f"the spool cannot be used: {error.strerror}; it must be writable"
            raise ResourceError(f"{self.root}: {reason}") from None
        self._foreign: set[str] = set()
        self._listed: deque[str] = deque()
        self._finished: dict[str, str] | None = None

    def _check_format(self) -> None:
        path = self.root / FORMAT_FILE
        try:
            found = path.read_text(errors="replace").strip()
        except FileNotFoundError:
            found = str(FORMAT_VERSION)
            with atomic_text(path) as file:
                file.write(f"{found}\n")
        if found != str(FORMAT_VERSION):
            advice = "name another directory, or use one version for pools and workflows"
            version = int(found) if re.fullmatch(r"[0-9]{1,9}", found) else found
            raise ResourceError(f"{self.root}: a spool of {other_version(version, FORMAT_VERSION, advice)}")

    def submit(self, job: Manifest) -> None:
        """Hand a manifest in, forgetting that it failed before; one that waits or is in work keeps its place."""
        name = f"{job.job}.json"
        shutil.rmtree(self.root / "failed" / job.job, ignore_errors=True)
        if (self.root / "incoming" / name).exists() or any(self.root.glob(f"claimed/*/{name}")):
            return
        with atomic_text(self.root / "incoming" / name) as file:
            file.write(job.dump())

    def waiting(self) -> list[str]:
        """Names of the manifests in ``incoming/``, the oldest first."""
        found = []
        with os.scandir(self.root / "incoming") as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    try:
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
                    except FileNotFoundError:
                        continue
        return [name for _, name in sorted(found)]

    def enroll(self, pool: str) -> None:
        """Let a pool claim, until another takes it for dead."""
        (self.root / "claimed" / pool).mkdir(mode=0o700, exist_ok=True)

    def check_claims(self, pool: str, job: str = "") -> None:
        """Check that a pool still has its claims, or its claim on one job.

        Raises:
            ResourceError: another pool has taken it for dead, and has the jobs now.
        """
        try:  # opened, not looked at: NFS asks the server about what is opened
            os.close(os.open(self.root / "claimed" / pool / (f"{job}.json" if job else ""), os.O_RDONLY))
        except FileNotFoundError:
            raise ResourceError(
                f"pool {pool} has lost its claims: it stood still for longer than lease_s and others took its jobs, or "
                "somebody emptied the spool; start it again"
            ) from None

    def claim(self, pool: str, accepts: Callable[[Manifest], bool]) -> Iterator[Manifest]:
        """Take what waits, oldest first.

        A manifest that cannot be read is failed with a receipt, and one that is not accepted goes back for others. What
        is in work for another sample waits for its result, see :meth:`twin`.

        Args:
            pool: Who claims; enrolled.
            accepts: Whether the pool can do a job.
        """
        if not self._listed:
            waiting = self.waiting()
            self._foreign.intersection_update(waiting)
            self._listed = deque(name for name in waiting if name not in self._foreign)
        at_work = self._at_work() if self._listed else set()
        while self._listed:
            name = self._listed.popleft()
            if _digest(name) in at_work:
                self._finished = None  # it may be finished by another pool
                continue
            mine = self.root / "claimed" / pool / name
            try:
                os.rename(self.root / "incoming" / name, mine)
            except FileNotFoundError:
                continue
            job = name.removesuffix(".json")
            try:
                parsed = self._parse(mine, job)
            except ManifestError as error:
                self._refuse(mine, job, str(error))
                continue
            if parsed.part >= 0 and (self.part_directory(parsed) / "receipt.json").exists():
                mine.unlink()  # of a pool that died when it had just been done
            elif accepts(parsed):
                at_work.add(_digest(name))
                yield parsed
            else:
                self._foreign.add(name)
                os.rename(mine, self.root / "incoming" / name)

    def _at_work(self) -> set[str]:
        """Digests of the jobs that pools have claimed."""
        return {_digest(path.name) for path in self.root.glob("claimed/*/*.json")}

    def twin(self, job: Manifest) -> Path | None:
        """Directory of a finished job that was the same work for a file of the same content; None without one."""
        if self._finished is None:
            self._finished = {_digest(path.name): path.name for path in (self.root / "done").iterdir()}
        name = self._finished.get(job.digest, "")
        outcome = self.receipt(name) if name else None
        whole = outcome is not None and outcome.state == "done" and not outcome.failures
        return self.root / "done" / name if whole and outcome and Path(outcome.embeddings).exists() else None

    def _parse(self, path: Path, job: str) -> Manifest:
        if path.is_symlink() or not path.is_file():
            raise ManifestError(f"{path.name}: not a regular file")
        try:
            with open(path, "rb") as file:
                content = file.read(MANIFEST_LIMIT_BYTES + 1)
            parsed = parse_manifest(content.decode("utf-8"), path.name)
        except UnicodeDecodeError:
            raise ManifestError(f"{path.name}: not UTF-8 text") from None
        except PermissionError:
            raise ManifestError(f"{path.name}: may not be read") from None
        if parsed.job != job:
            raise ManifestError(f"{path.name}: the name does not fit the content, which is job {parsed.job}")
        return parsed

    def _refuse(self, path: Path, job: str, error: str) -> None:
        directory = self.root / "failed" / job
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        Receipt(job=job, sample="", state="failed", error=error).write(directory / "receipt.json")
        os.replace(path, directory / "manifest.json")

    def finish(self, pool: str, outcome: Receipt, work: Path) -> None:
        """Put the receipt into a job's work directory, move that to ``done/`` or ``failed/`` and end the claim.

        Raises:
            ResourceError: the claim is not the pool's any more; nothing is written.
        """
        self.check_claims(pool, outcome.job)
        is_part = PART_PATTERN.fullmatch(outcome.job) is not None
        try:
            outcome.write(work / "receipt.json")
            if outcome.state == "done":
                _tidy(work, (*RESULT, COUNTS_FILE) if is_part else RESULT)
        except FileNotFoundError:
            if not is_part:  # whose sample may have failed meanwhile, and its parts are gone with it
                raise
        if is_part:
            (self.root / "claimed" / pool / f"{outcome.job}.json").unlink(missing_ok=True)
            return
        target = self.root / outcome.state / outcome.job
        shutil.rmtree(target, ignore_errors=True)
        os.rename(work, target)
        sync_directory(target.parent)
        if outcome.state == "done" and self._finished is not None:
            self._finished[_digest(outcome.job)] = outcome.job
        (self.root / "claimed" / pool / f"{outcome.job}.json").unlink(missing_ok=True)

    def give_back(self, pool: str) -> int:
        """Return every claim of a pool to ``incoming/`` and drop its half-done work; the number of claims."""
        returned = 0
        for path in sorted((self.root / "claimed" / pool).glob("*.json")):
            with suppress(FileNotFoundError):  # another pool takes over the same dead pool
                os.rename(path, self.root / "incoming" / path.name)
                returned += 1
        with suppress(OSError):  # not empty: the pool is not dead, and has just claimed one more
            (self.root / "claimed" / pool).rmdir()
        shutil.rmtree(self.root / "work" / pool, ignore_errors=True)
        return returned

    def pools(self) -> set[str]:
        """Names of the pools that have left anything here."""
        named = {path.stem for path in (self.root / "pools").glob("*.json")}
        return named | {path.name for place in ("claimed", "work", "blocks") for path in (self.root / place).iterdir()}

    def living(self, observer: Observer) -> list[PoolState]:
        """The states of the pools that serve here, as far as ``observer`` knows."""
        return [state for state in published_states(self.root) if observer.lives(state)]

    def adopt_blocks(self, dead: str, mine: Path) -> int:
        """Move the blocks of a dead pool to the directory of another; their number."""
        adopted = 0
        found: list[Path] = []
        with suppress(FileNotFoundError):
            found = list((self.root / "blocks" / dead).glob("*/*.safetensors"))
        for path in found:
            target = mine / path.parent.name / path.name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another pool takes over the same dead pool
                os.rename(path, target)
                adopted += 1
        shutil.rmtree(self.root / "blocks" / dead, ignore_errors=True)
        return adopted

    def work_directory(self, pool: str, job: str) -> Path:
        """A new, empty directory for a pool's work on a job."""
        directory = self.root / "work" / pool / job
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700)
        return directory

    def part_directory(self, part: Manifest) -> Path:
        """Where a part of a sample is read, embedded and kept until all are done."""
        return self.root / "parts" / part.whole / f"{part.part:06d}"

    def open_parts(self, job: Manifest, precision: str) -> None:
        """Begin to keep parts of a job, whose models compute in ``precision``."""
        directory = self.root / "parts" / job.whole
        directory.mkdir(mode=0o700, exist_ok=True)
        with atomic_text(directory / PRECISION_FILE) as file:
            file.write(precision)

    def has_parts(self, job: Manifest, precision: str) -> bool:
        """Whether there are parts of a job that another pool has left; those of another precision are removed."""
        try:
            if (self.root / "parts" / job.whole / PRECISION_FILE).read_text() == precision:
                return True
        except FileNotFoundError:
            pass
        self.drop_parts(job.whole)
        return False

    def hand_in_part(self, part: Manifest, work: Path) -> None:
        """Put what was read of a part from a work directory to where any pool finds it, unless it is there already."""
        directory = self.part_directory(part)
        if not directory.exists():
            os.rename(work, directory)
            work.mkdir(mode=0o700)
        if not (directory / "receipt.json").exists():
            self.submit(part)

    def part_outcome(self, part: Manifest) -> Receipt | None:
        """The receipt of a part; one that failed is forgotten, so that it is tried again with the sample."""
        outcome = read_receipt(self.part_directory(part) / "receipt.json")
        if outcome is not None and outcome.state == "failed":
            (self.part_directory(part) / "receipt.json").unlink(missing_ok=True)
        return outcome

    def drop_parts(self, whole: str) -> None:
        """Remove all parts of a job, those that wait too."""
        for path in self.root.glob(f"incoming/{whole}.[0-9]*.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.root / "parts" / whole, ignore_errors=True)

    def receipt(self, job: str) -> Receipt | None:
        """The receipt of a job, if it has one; its embeddings are where this host sees them."""
        outcome = read_receipt(self.root / "done" / job / "receipt.json")
        if outcome is not None and outcome.embeddings:
            here = self.root / "done" / job / Path(outcome.embeddings).name
            return replace(outcome, embeddings=str(here))
        return outcome or read_receipt(self.root / "failed" / job / "receipt.json")

    def forget(self, jobs: Mapping[str, str]) -> None:
        """Remove jobs of these samples other than those named: of earlier inputs or settings, finished or waiting."""
        for state in ("done", "failed", "parts"):
            for directory in (self.root / state).iterdir():
                keep = jobs.get(directory.name.rpartition("-")[0])
                if keep is not None and directory.name != keep:
                    shutil.rmtree(directory, ignore_errors=True)
        for name in self.waiting():
            sample, _, digest = name.removesuffix(".json").rpartition("-")
            if sample in jobs and jobs[sample] != f"{sample}-{digest[:16]}":
                (self.root / "incoming" / name).unlink(missing_ok=True)


def _tidy(directory: Path, kept: Sequence[str]) -> None:
    """Remove what was needed to make a result."""
    for path in directory.iterdir():
        if path.name not in kept:
            path.unlink()


def _digest(job: str) -> str:
    """The digest in a job's name or in that of its file, which says what work it is, whatever the sample's name."""
    return job.removesuffix(".json").rpartition("-")[2]


def _make_own(directory: Path) -> None:
    """Make a directory with mode 0700, or check that one that is there is ours alone to write to."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.getuid():
        raise ResourceError(f"{directory}: the spool belongs to another user, uid {found.st_uid}; use one of yours")
    if modes.S_IMODE(found.st_mode) & 0o022:
        raise ResourceError(f"{directory}: others may write to the spool; chmod 700 it")
