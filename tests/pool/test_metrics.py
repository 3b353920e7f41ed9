"""The metrics that a pool keeps fresh, as the official client reads them."""

import signal
from collections.abc import Callable
from pathlib import Path

from tests.pool.conftest import ServedPool, job, proteins, submit
from tests.spool.test_view import metrics, of


def test_a_pool_keeps_its_metrics_fresh_until_its_end(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path]
) -> None:
    output = tmp_path / "holdfast.prom"
    pool = serve(prometheus=str(output))

    def seen(name: str, **labels: str) -> float:
        return of(metrics(output.read_text())[f"holdfast_{name}"], **labels)

    pool.eventually(output.exists)
    outcomes = submit(pool, job(models, "p", proteins(tmp_path / "p.faa", 3, 40), "proteins"))
    assert outcomes["p"].state == "done"
    pool.eventually(lambda: seen("jobs_total", outcome="done") == 1)
    assert seen("pool_state", state="ready") == 1
    assert seen("tokens_total") == 3 * 42
    assert seen("device_ready", device="cpu:0") == 1
    pool.process.send_signal(signal.SIGTERM)
    assert pool.ended() == 0
    assert (seen("pool_state", state="ended"), seen("pool_state", state="ready")) == (1, 0)


def test_a_pool_says_at_once_that_its_metrics_cannot_be_written(
    serve: Callable[..., ServedPool], tmp_path: Path
) -> None:
    pool = serve(prometheus=str(tmp_path / "none" / "holdfast.prom"))
    assert pool.ended() == 1
    assert "no such directory, make it first" in pool.log.read_text()
    assert "Traceback" not in pool.log.read_text()


def test_a_pool_goes_on_when_its_metrics_can_no_longer_be_written(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path]
) -> None:
    place = tmp_path / "metrics"
    place.mkdir()
    pool = serve(prometheus=str(place / "holdfast.prom"))
    pool.eventually((place / "holdfast.prom").exists)
    (place / "holdfast.prom").unlink()
    place.rmdir()
    outcomes = submit(pool, job(models, "p", proteins(tmp_path / "p.faa", 3, 40), "proteins"))
    assert outcomes["p"].state == "done"
    pool.process.send_signal(signal.SIGTERM)
    assert pool.ended() == 0
    assert pool.log.read_text().count("the metrics could not be written") == 1
