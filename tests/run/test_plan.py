"""The plan of a run: what is left to its jobs, and how samples are shared out to consumers and replicas."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from holdfast.errors import ConfigError, HoldfastError, ResourceError, WeightsError
from holdfast.models.registry import Output
from holdfast.pool.settings import read_settings
from holdfast.run.config import Sample
from holdfast.run.failures import check_samples, read_outcome, write_failures
from holdfast.run.plan import Share, jobs_of, make_plan, read_plan, share_out
from holdfast.spool.state import LAUNCHER_VARIABLE, Identity
from hypothesis import given
from hypothesis import strategies as st

from tests.run.plans import CONFIG, MODELS, SAMPLES, finish, prepare, replace_receipt


def test_a_plan_is_kept_for_the_jobs_of_the_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, "")
    os.remove("results/b/receipt.json")
    made = make_plan(CONFIG, {sample.sample: sample for sample in SAMPLES}, gpu=None, cores=2)
    assert (made.consumers, made.gpu, made.threads) == ([Share(0, ["b"])], None, 2)
    finish(SAMPLES[1], CONFIG)
    assert read_plan() == made
    assert made.models == ["esm2", "dnabert_s"]
    for name in MODELS:
        prepare(f"elsewhere/{name}", name, "x", "d" * 64)
    directories = [Path("elsewhere") / name for name in made.models]
    (told_job,) = jobs_of(Path(made.path), 0, directories)
    assert (told_job.sample, told_job.chunk_length, told_job.weights) == ("b", 500, {"d" * 64})
    assert {name: request.outputs for name, request in told_job.models.items()} == {
        name: [Output(1, "mean")] for name in MODELS
    }
    with pytest.raises(WeightsError, match="not a prepared model"):
        jobs_of(Path(made.path), 0, [Path("nowhere"), *directories[1:]])
    told = read_settings(made.pool_settings)
    assert told.models == {model: str(project / "resources" / model) for model in MODELS}
    assert (told.threads, told.tokens_per_batch, told.gpu, told.precision) == (2, 4096, None, "auto")
    assert CONFIG["pool"]["threads"] == 8


def test_replicas_share_the_cores_so_that_they_run_side_by_side(project: Path) -> None:
    os.remove("results/b/receipt.json")
    config = {**CONFIG, "pool": {**CONFIG["pool"], "replicas": 2}}
    for cores, threads in ((8, 4), (64, 8), (1, 1), (None, 8)):
        assert make_plan(config, {sample.sample: sample for sample in SAMPLES}, None, cores).threads == threads


def test_what_lies_below_a_prefix_is_found_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, "")
    entries = {sample.sample: sample for sample in SAMPLES}
    listed = {**CONFIG, "samples": [dataclasses.asdict(sample) for sample in SAMPLES]}
    for name in ("results", "resources"):
        Path("below").mkdir(exist_ok=True)
        os.rename(name, f"below/{name}")

    def below(path: str) -> str:
        return f"below/{path}"

    here = make_plan(listed, entries, gpu=None, cores=2)
    there = make_plan(listed, entries, gpu=None, cores=2, place=below)
    assert sorted(name for share in here.consumers for name in share.samples) == ["a", "b", "d", "p"]
    assert there.consumers == []
    assert read_settings(there.pool_settings).models["esm2"] == str(project / "below/resources/esm2")
    assert (read_plan(), read_plan(below)) == (here, there)
    assert (here.sheet, there.sheet) == (".holdfast/samples.tsv", "below/.holdfast/samples.tsv")
    monkeypatch.chdir("below")
    replace_receipt("a", state="failed", error="why")
    monkeypatch.chdir(project)
    write_failures(entries, Path("below/results"), Path("below/results/failures.tsv"))
    assert Path("below/results/failures.tsv").read_text() == "sample\trow\treason\na\t\twhy\n"


def test_a_killed_run_of_the_same_process_number_leaves_nothing_for_the_next(project: Path) -> None:
    """As in a container that is started again, in which Snakemake has the same number on the same host."""
    own = Identity.own()
    left = project / f".holdfast/runs/{own.host}-{own.pid}/called/a"
    left.mkdir(parents=True)
    made = make_plan(CONFIG, {}, gpu=None, cores=2)
    assert Path(made.directory) == left.parents[1]
    assert Path(made.path).exists()
    assert not left.parent.exists()


@pytest.mark.parametrize("told", ["", "{}"])
def test_a_job_that_is_not_told_its_run_says_so(project: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, told)
    with pytest.raises(ResourceError, match="HOLDFAST_LAUNCHER is not in this job's environment"):
        read_plan()


def test_a_plan_that_is_not_there_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, "")
    made = make_plan(CONFIG, {}, gpu=None, cores=2)
    os.remove(made.path)
    with pytest.raises(ResourceError, match=r"plan\.json: the plan of this run cannot be read: No such file"):
        read_plan()


@pytest.mark.parametrize(("cores", "consumers"), [(2, 2), (100, 4), (None, 4)])
def test_no_consumer_of_external_pools_waits_for_a_core_before_it_hands_in(
    project: Path, cores: int | None, consumers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = {**CONFIG["pool"], "lifecycle": "external", "spool": "spool", "replicas": 3}
    samples = {f"s{number}": Sample(f"s{number}", "a.faa", "proteins", "", "") for number in range(70)}
    made = make_plan({**CONFIG, "pool": pool}, samples, gpu=None, cores=cores)
    assert len(made.consumers) == consumers
    assert {share.replica for share in made.consumers} == {0}
    assert sum(len(share.samples) for share in made.consumers) == len(samples)
    assert "holdfast: no pool serves spool now" in capsys.readouterr().err
    assert not Path("spool").exists()


@pytest.mark.parametrize(("samples", "consumers"), [(3, 3), (400, 4), (4_000, 40)])
def test_four_consumers_have_up_to_a_hundred_samples_each_before_there_are_more(
    project: Path, samples: int, consumers: int
) -> None:
    made = make_plan(
        CONFIG, {f"s{n}": Sample(f"s{n}", "a.faa", "proteins", "", "") for n in range(samples)}, gpu=None, cores=None
    )
    assert len(made.consumers) == consumers
    sizes = {len(share.samples) for share in made.consumers}
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 10**9), max_size=300), st.integers(1, 5), st.integers(1, 70))
def test_every_sample_is_in_one_batch_and_replicas_are_even(sizes: list[int], replicas: int, consumers: int) -> None:
    samples = {f"s{number}": size for number, size in enumerate(sizes)}
    shares = share_out(samples, replicas, consumers)
    assert sorted(name for share in shares for name in share.samples) == sorted(samples)
    assert all(share.samples and 0 <= share.replica < replicas for share in shares)
    loads = [
        sum(samples[name] + 1000 for share in shares if share.replica == replica for name in share.samples)
        for replica in range(replicas)
    ]
    assert max(loads) - min(loads) <= max(samples.values(), default=0) + 1000
    for replica in range(replicas):
        assert sum(share.replica == replica for share in shares) <= consumers
    if len(samples) <= consumers:
        assert all(len(share.samples) == 1 for share in shares)


@pytest.mark.parametrize(
    ("pool", "gpu", "problem"),
    [
        *(
            (
                {"replicas": 4},
                gpu,
                f"--resources gpu={gpu} is no multiple of pool.replicas, 4: all replicas take the same number of "
                f"GPUs, so say gpu={better}, or change pool.replicas",
            )
            for gpu, better in ((3, 4), (11, 8))
        ),
        (
            {"lifecycle": "external"},
            None,
            "pool.lifecycle is external: name the spool that the pools serve in pool.spool",
        ),
    ],
)
def test_replicas_and_pools_that_do_not_fit_are_named(
    project: Path, pool: dict[str, Any], gpu: int | None, problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        make_plan({**CONFIG, "pool": {**CONFIG["pool"], **pool}}, {}, gpu=gpu, cores=2)
    assert str(raised.value) == problem


def test_the_gpus_are_shared_by_the_replicas(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, "")
    pool = {**CONFIG["pool"], "replicas": 3}
    assert make_plan({**CONFIG, "pool": pool}, {}, gpu=6, cores=2).gpu == 2


def test_failures_are_listed_and_nothing_is_made_of_what_failed(project: Path) -> None:
    table, results = Path("results/failures.tsv"), Path("results")
    samples = ["a", "b", "p"]
    write_failures(samples, results, table)
    assert table.read_text() == "sample\trow\treason\n"
    check_samples(table)
    replace_receipt("a", state="failed", error="a.fna: is\tempty\nat all")
    replace_receipt("b", failures={"c1_chunk_1F1": "the worker died"})
    write_failures(samples, results, table)
    assert table.read_text() == ("sample\trow\treason\na\t\ta.fna: is empty at all\nb\tc1_chunk_1F1\tthe worker died\n")
    outcome = read_outcome(table, samples, called=["a", "b"], labelled=[])
    assert (outcome.done, outcome.called) == (["b", "p"], ["b"])
    assert read_outcome(table, samples, called=["b"], labelled=["a"]).called == []
    with pytest.raises(HoldfastError, match=r"1 sample has failed: a; results/failures\.tsv says why"):
        check_samples(table)
    with pytest.raises(ResourceError, match=r"results/none/receipt\.json: is missing; run again"):
        write_failures([*samples, "none"], results, table)
