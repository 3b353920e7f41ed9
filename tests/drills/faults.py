"""Faults for real processes of pools.

The package knows nothing of faults. A :class:`Fault` travels as ``sitecustomize.py`` on the PYTHONPATH: in the
processes that a pool spawns, and in no other, it wraps one function of the package, and where a marker goes through
that function the process does the deed for real: it kills itself, hangs, raises what CUDA would, or waits for the test.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from holdfast.models.registry import load_tokenizer, read_prepared

from tests.drills.processes import eventually

INJECTION = """
import functools, importlib.machinery, json, os, resource, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent
PLACES = {
    "load": ("holdfast.pool.worker", "start"),
    "embed": ("holdfast.pool.worker", "embed"),
    "encode": ("holdfast.pool.worker", "Worker", "embed"),
    "read": ("holdfast.pool.sample", "read_sample"),
    "finish": ("holdfast.pool.finish", "finish_sample"),
}


def concerns(fault, arguments):
    if fault["place"] == "embed":
        return bytes.fromhex(fault["marker"]) in arguments[1].tobytes()
    if fault["place"] == "encode":
        return len(arguments[2]) > int(fault["marker"])
    return fault["marker"] in ("", arguments[0].name if fault["place"] == "load" else arguments[0].sample)


def do(fault, arguments):
    if fault["deed"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["deed"] == "hang" and not (HERE / "hung").exists():
        (HERE / "hung").touch()
        time.sleep(1e6)
    elif fault["deed"] == "raise":
        raise RuntimeError(fault["words"])
    elif fault["deed"] == "distrust":
        sys.modules["holdfast.pool.worker"].SELF_TEST_TOLERANCE["fp32"] = -1.0
    elif fault["deed"] == "delete":
        os.unlink(arguments[0].fasta)
    elif fault["deed"] == "slow":
        until = time.monotonic() + float(fault["words"])
        while time.monotonic() < until and not (HERE / "released").exists():
            time.sleep(0.01)
    elif fault["deed"] == "wait":
        (HERE / "arrived").touch()
        while not (HERE / "released").exists():
            time.sleep(0.01)
    elif fault["deed"] == "note":
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tokens = len(arguments[1]) if fault["place"] == "embed" else 0
        with open(HERE / "notes", "a") as file:
            file.write(f"{peak_bytes} {tokens}\\n")


def wrap(function, fault):
    def faulty(*arguments):
        struck = concerns(fault, arguments)
        if struck and not fault["after"]:
            do(fault, arguments)
        result = function(*arguments)
        if struck and fault["after"]:
            do(fault, arguments)
        return result

    faulty.__module__, faulty.__qualname__ = function.__module__, function.__qualname__
    return faulty


class Injector:
    def find_spec(self, name, path, target=None):
        faults = [fault for fault in FAULTS if PLACES[fault["place"]][0] == name]
        if not faults:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_inject(module):
            execute(module)
            for fault in faults:
                *owners, name = PLACES[fault["place"]][1:]
                owner = functools.reduce(getattr, owners, module)
                setattr(owner, name, wrap(getattr(owner, name), fault))

        spec.loader.exec_module = execute_and_inject
        return spec


if "--multiprocessing-fork" in sys.orig_argv:
    FAULTS = json.loads((HERE / "faults.json").read_text())
    sys.meta_path.insert(0, Injector())
"""


@dataclass(frozen=True)
class Fault:
    """What goes wrong in processes of a pool.

    Attributes:
        place: ``load``, ``embed`` and, inside that, ``encode`` in workers, ``read`` and ``finish`` in readers.
        deed: ``kill`` (SIGKILL to itself), ``hang`` (the first time), ``raise`` (a RuntimeError), ``distrust`` (let the
            self-test fail), ``delete`` (the sample's file), ``slow`` (until the test releases it), ``wait`` (for the
            test, see :meth:`Injection.wait_for`), ``note`` (the process's peak of memory and the tokens of the batch).
        marker: For ``embed`` tokens in the batch, as hexadecimal digits; for ``encode`` how many tokens go well;
            for ``load`` a device's name, for readers a sample's. Empty for every one.
        words: Message of the error, or seconds to be slow.
        after: Whether it goes wrong behind the function, not before it.
    """

    place: str
    deed: str
    marker: str = ""
    words: str = ""
    after: bool = False


class Injection:
    """Faults on their way into processes.

    Attributes:
        environment: Variables of the process that starts the pool.
    """

    def __init__(self, directory: Path, *faults: Fault) -> None:
        """Write the faults to a new directory."""
        directory.mkdir()
        self._directory = directory
        (directory / "sitecustomize.py").write_text(INJECTION)
        (directory / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))
        self.environment = {"PYTHONPATH": str(directory)}

    def wait_for(self) -> None:
        """Wait until a process has come to a fault that waits."""
        eventually((self._directory / "arrived").exists)

    def release(self) -> None:
        """Let it go on."""
        (self._directory / "released").touch()

    def notes(self) -> list[list[int]]:
        """What processes noted: their peak of memory in bytes, and the tokens of the batch in ``embed``."""
        return [[int(word) for word in line.split()] for line in (self._directory / "notes").read_text().splitlines()]


def token_marker(models: Path, protein: str) -> str:
    """The tokens of a protein's residues, as they stand in a batch."""
    numbers, _ = load_tokenizer(read_prepared(models / "esm2"), models / "esm2")([protein])
    return numbers[1:-1].astype(np.int16).tobytes().hex()
