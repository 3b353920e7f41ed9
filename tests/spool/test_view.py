"""What others see of a spool: who lives and what waits, as JSON and as metrics that the official client reads."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from holdfast import cli
from holdfast.errors import ConfigError
from holdfast.models.registry import Output
from holdfast.spool.job import Request, make_manifest
from holdfast.spool.metrics import prometheus_text
from holdfast.spool.progress import DeviceProgress, JobProgress, Progress
from holdfast.spool.spool import Spool
from holdfast.spool.state import Identity, PoolState
from holdfast.spool.view import SpoolWatch
from prometheus_client.parser import text_string_to_metric_families

SCHEMA = yaml.safe_load((Path(__file__).parents[2] / "workflow/schemas/pool_status.schema.yaml").read_text())
DIGEST = "a" * 64
DEVICE = DeviceProgress("cpu:0", "CPU, 2 threads", "ready", 0, 0.5, 0)
BUSY = Progress(
    devices=[DEVICE], tokens_per_s=100.0, tokens_left=3000, read_bytes={"contigs": 500}, read_tokens={"contigs": 1000}
)


def publish(spool: Path, number: int, progress: Progress, **state: object) -> PoolState:
    """Publish the state of a pool, alive since it is this process, under a name of its own."""
    own = dataclasses.replace(Identity.own(), host=f"host{number}")
    pool = PoolState(own, str(spool), {"esm2": DIGEST}, "auto", "ready", progress=progress)
    pool = dataclasses.replace(pool, **state)  # type: ignore[arg-type]
    pool.write()
    return pool


def metrics(text: str) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """By name, the values of metrics by their labels without the spool's; each value once, each metric of one type."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation.endswith(".")
        assert family.type == ("counter" if family.samples[0].name.endswith("_total") else "gauge")
        for sample in family.samples:
            labels = frozenset((key, value) for key, value in sample.labels.items() if key != "spool")
            assert "spool" in sample.labels
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


def of(values: dict[frozenset[tuple[str, str]], float], **labels: str) -> float:
    """The one value whose labels include these."""
    (value,) = (value for known, value in values.items() if labels.items() <= dict(known).items())
    return value


def test_a_look_at_a_spool_says_what_waits_and_who_lives(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(3):
        (tmp_path / f"{number}.fna").write_text("A" * 600)
        job = make_manifest(
            f"s{number}",
            "contigs",
            str(tmp_path / f"{number}.fna"),
            500,
            1,
            {name: Request(DIGEST, [Output(2, "mean")], "whole", 0) for name in ("esm2", "dnabert_s")},
            "auto",
            "float16",
        )
        spool.submit(job)
    reading = JobProgress("b-1", "b", "contigs", "reading", 3.0, 1000)
    publish(spool.root, 1, dataclasses.replace(BUSY, jobs=[reading]))
    publish(spool.root, 2, BUSY, identity=dataclasses.replace(Identity.own(), started=1))
    publish(spool.root, 3, Progress(), state="failed", reason="no GPU")
    watch = SpoolWatch(spool.root)
    for _ in range(2):
        seen = json.loads(watch.look().json())
        jsonschema.validate(seen, SCHEMA)
        assert (seen["waiting"]["jobs"], seen["waiting"]["size_bytes"]) == (3, 1800)
        assert seen["left"] == {"tokens": 3000 + 2 * (1000 + 1800), "seconds": 86.0, "about": True}
    assert sorted(pool["state"] for pool in seen["pools"]) == ["dead", "failed", "ready"]
    (spool.root / "incoming" / "x.json").write_text("no manifest")
    assert watch.look().waiting.jobs == 4


def test_another_directory_is_no_spool(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a spool"):
        SpoolWatch(tmp_path)


def test_metrics_are_what_the_tables_say_for_the_official_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(tmp_path / 'a "spool"\\new\nline').root
    card = DeviceProgress("cuda:0", "H100", "ready", 2, 0.75, 5000, 3 * 2**30, 80 * 2**30, 61, 0.5)
    job = JobProgress("a-1", "a", "contigs", "embedding", 3.0, 1000, 10, 4, 900, 400)
    busy = dataclasses.replace(BUSY, devices=[card, DEVICE], jobs=[job], tokens=2**40, done=7, errors_logged=3)
    publish(spool, 1, busy)
    gone = publish(spool, 2, BUSY, identity=dataclasses.replace(Identity.own(), host="gone", started=1))
    output = tmp_path / "holdfast.prom"
    cli.main(["status", str(spool), "--prometheus", str(output)])
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["holdfast.prom"]
    text = output.read_text()
    (family, *_) = text_string_to_metric_families(text)
    assert family.samples[0].labels["spool"] == str(spool)
    found = metrics(text)
    assert of(found["holdfast_pool_state"], host="host1", state="ready") == 1
    assert of(found["holdfast_pool_state"], host="host1", state="dead") == 0
    assert of(found["holdfast_pool_state"], pool=gone.identity.pool, state="dead") == 1
    assert of(found["holdfast_open_jobs"], state="embedding") == 1
    assert of(found["holdfast_open_jobs"], state="reading") == 0
    assert of(found["holdfast_jobs_total"], host="host1", outcome="done") == 7
    assert of(found["holdfast_tokens_total"], host="host1") == 2**40
    assert of(found["holdfast_errors_total"], host="host1") == 3
    assert of(found["holdfast_left_tokens"]) == 3000
    assert of(found["holdfast_device_busy_ratio"], device="cuda:0") == 0.75
    assert of(found["holdfast_device_restarts_total"], device="cuda:0") == 2
    assert of(found["holdfast_device_memory_used_bytes"]) == 3 * 2**30, "of the CPU nobody knows"
    assert of(found["holdfast_device_temperature_celsius"]) == 61
    assert of(found["holdfast_waiting_jobs"]) == 0


def test_every_metric_is_in_the_documentation(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool").root
    card = DeviceProgress("cuda:0", "H100", "ready", 2, 0.75, 5000, 3 * 2**30, 80 * 2**30, 61, 0.5)
    publish(spool, 1, dataclasses.replace(BUSY, devices=[card]))
    names = {name.removeprefix("holdfast_") for name in metrics(prometheus_text(SpoolWatch(spool).look()))}
    part = (Path(__file__).parents[2] / "docs/watching.md").read_text().partition("\n## Prometheus\n")[2]
    table = [line.split("|")[1] for line in part.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert {word.strip(" `") for cell in table for word in cell.split(",")} == names


def test_metrics_go_where_they_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(tmp_path / "spool").root
    with pytest.raises(SystemExit):
        cli.main(["status", str(spool), "--prometheus", str(tmp_path / "none/holdfast.prom")])
    assert "no such directory, make it first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["status", str(spool), "--json", "--prometheus", "holdfast.prom"])
    assert "not allowed with" in capsys.readouterr().err
