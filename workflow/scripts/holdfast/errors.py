"""Errors a user can act on, and the one place where a command prints them.

Every message says what is wrong, where (file, line, record or key) and what to do. Every command passes through
:func:`guarded`, so that a user's mistake ends with one line and no traceback.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from os import PathLike

ERROR = "holdfast: error: "
"""Begins every line that says why a command fails."""
PREPARE_AGAIN = "prepare the model again with `holdfast prepare`"


class HoldfastError(Exception):
    """A problem that the user can mend; ``str()`` is the whole message. Exit code 2: the user's input."""

    exit_code = 2


class ConfigError(HoldfastError):
    """A wrong or missing key in the configuration or the sample sheet."""


class WeightsError(HoldfastError):
    """A checkpoint, classifier or prepared model that cannot be used."""


class InputError(HoldfastError):
    """A sequence file, or one record in it, that cannot be used."""

    def __init__(
        self, problem: str, path: str | PathLike[str], line: int | None = None, record: str | None = None
    ) -> None:
        where = str(path)
        if line is not None:
            where += f", line {line}"
        if record is not None:
            where += f", record '{record if len(record) <= 80 else record[:77] + '...'}'"
        super().__init__(f"{where}: {problem}")
        self._made_from = (problem, path, line, record)

    def __reduce__(self) -> tuple[type["InputError"], tuple[object, ...]]:
        """Let the error pass from a reader process to the supervisor."""
        return type(self), self._made_from


class ResourceError(HoldfastError):
    """The machine, not the input: a device, a disk or a process that fails. Exit code 1."""

    exit_code = 1


def guarded(main: Callable[[], None]) -> None:
    """Call ``main`` and turn what the user or the machine did wrong into one line on stderr.

    Exit codes: 0 success, 2 the user's input, 1 input/output or the machine, 130 interrupted.
    """
    try:
        main()
    except HoldfastError as error:
        _report(str(error))
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _report(f"{where}{error.strerror or error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def listed(heading: str, problems: Sequence[str], most: int = 20) -> str:
    """One text of many problems, a line each, of which the first are named."""
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([heading, *problems[:most], *more])


def how_to_install(package: str) -> str:
    """The command that installs a Python package for the interpreter that runs this, wherever it is pasted."""
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(package)}"


def _report(problem: str) -> None:
    """Write the line at once, its end included: jobs that run side by side share a terminal."""
    sys.stderr.write(f"{ERROR}{problem}\n")
