"""``holdfast serve``: a pool from its settings to its end, in a process of its own, whose state others can read."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ..errors import ERROR, HoldfastError, ResourceError
from ..spool.metrics import MetricsFile
from ..spool.state import PoolState
from .settings import read_settings
from .supervisor import Supervisor

log = logging.getLogger("holdfast.pool")


def serve_pool(config: Path, state: PoolState, endpoint: Path) -> None:
    """Run a pool to its end and publish how it ended.

    Args:
        config: Settings of the pool, see :mod:`.settings`.
        state: Its state so far.
        endpoint: The pool ends when this file goes.

    Raises:
        SystemExit: the pool could not start or go on; the reason is in its log and published, for clients to read.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    log.info("pool %s, spool %s", state.identity.pool, state.spool)
    state.state, state.reason = "failed", "unexpected error; see the pool's log"
    metrics = MetricsFile(None, state.spool)
    try:
        settings = read_settings(config)
        metrics = MetricsFile(settings.prometheus, state.spool)
        pool = Supervisor(settings, state, endpoint, metrics.refresh)
        state.state, state.reason = "starting", ""
        pool.run()
        state.state, state.reason = "ended", pool.stop_reason
    except HoldfastError as error:
        state.state, state.reason = "failed", str(error)
        _give_up(error)
    except OSError as error:
        where = error.filename or state.spool
        state.reason = f"{where}: {error.strerror or error}; mend that and run again, finished work is kept"
        state.state = "failed"
        _give_up(ResourceError(state.reason))
    finally:
        if state.state in ("starting", "ready"):
            state.state, state.reason = "failed", "unexpected error; see the pool's log"
        with suppress(OSError):
            state.write()
        metrics.refresh(now=True)


def _give_up(error: HoldfastError) -> NoReturn:
    """End like every entry point, but with a line that has the form of the log's others."""
    log.critical("%s%s", ERROR, error)
    raise SystemExit(error.exit_code) from None
