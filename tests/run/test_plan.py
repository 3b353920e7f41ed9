"""Which samples are pending: those without a receipt for exactly this work, or without its embeddings."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast.errors import ConfigError, ResourceError
from holdfast.models.registry import KINDS, Prepared, read_prepared
from holdfast.pool.settings import read_settings
from holdfast.run.config import Sample, check_config
from holdfast.run.failures import report_failures
from holdfast.run.plan import Share, directory_of, find_pending, jobs_of, make_plan, read_plan, share_out
from holdfast.spool.job import Receipt, make_manifest, read_receipt
from holdfast.spool.state import LAUNCHER_VARIABLE
from hypothesis import given
from hypothesis import strategies as st

MODELS = {"esm2": "synthetic:esm2_t6_8M_UR50D", "dnabert_s": "synthetic:dnabert_s_tiny"}
SAMPLES = [
    Sample("a", "a.fna", "contigs", ""),
    Sample("b", "b.fna", "contigs", "virus"),
    Sample("p", "p.faa", "proteins", ""),
    Sample("d", "d.fna", "dna", ""),
]
CONFIG = check_config(
    {
        "samples": "samples.tsv",
        "models": {model: {"weights": source} for model, source in MODELS.items()},
        "pool": {"tokens_per_batch": 4096},
    }
)


def prepare(directory: str, model: str, source: str, digest: str) -> None:
    """Leave the description of a prepared model, all that the plan reads of it."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    Prepared(model, {"layers": 1}, 8, source, "0" * 64, digest, True, {}).write(Path(directory))


def finish(sample: Sample, config: dict[str, Any], state: str = "done") -> None:
    """Leave what a run leaves of one sample."""
    digests = {
        model: read_prepared(directory_of(entry["weights"], model)).weights_sha256
        for model, entry in config["models"].items()
        if model in KINDS[sample.kind].models
    }
    job = make_manifest(
        sample.sample,
        sample.kind,
        sample.fasta,
        config["chunk_length"],
        digests,
        config["precision"],
        config["store_dtype"],
    )
    results = Path("results") / sample.sample
    results.mkdir(parents=True, exist_ok=True)
    (results / "embeddings.h5").touch()
    embeddings = f"{os.getcwd()}/spool/{job.job}.h5"
    outcome = Receipt(job.job, sample.sample, state, "", embeddings, size_bytes=job.size_bytes, mtime_ns=job.mtime_ns)
    outcome.write(results / "receipt.json")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which everything is done."""
    monkeypatch.chdir(tmp_path)
    for model, source in MODELS.items():
        prepare(f"resources/{model}", model, source, ("a" if model == "esm2" else "b") * 64)
    for sample in SAMPLES:
        Path(sample.fasta).write_text(">x\nACGT\n")
        finish(sample, CONFIG)
    return tmp_path


def pending(**changed: Any) -> list[str]:
    return list(find_pending({**CONFIG, **changed}, SAMPLES))


def test_all_is_pending_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pending() == ["a", "b", "p", "d"]


def test_nothing_is_pending_where_all_is_done(project: Path) -> None:
    assert pending() == []


def test_a_new_sample_alone_is_pending(project: Path) -> None:
    assert find_pending(CONFIG, [Sample("n", "n.fna", "contigs", ""), *SAMPLES]) == {"n": 0}


def write(path: str, text: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(text)


def fail(name: str) -> None:
    (sample,) = (sample for sample in SAMPLES if sample.sample == name)
    finish(sample, CONFIG, "failed")


def replace_receipt(name: str, **changed: Any) -> None:
    path = Path("results") / name / "receipt.json"
    outcome = read_receipt(path)
    assert outcome is not None
    dataclasses.replace(outcome, **changed).write(path)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (write("a.fna", ">x\nACGTA\n"), ["a"]),
        (lambda: os.utime("b.fna", ns=(1, 1)), ["b"]),
        (lambda: os.remove("p.faa"), []),
        (lambda: fail("d"), ["d"]),
        (lambda: os.remove("results/a/receipt.json"), ["a"]),
        (write("results/a/receipt.json", "{"), ["a"]),
        (write("results/a/receipt.json", "{}"), ["a"]),
        (lambda: os.remove("results/b/embeddings.h5"), ["b"]),
        (lambda: replace_receipt("a", job="a-0123456789abcdef"), ["a"]),
        (lambda: prepare("resources/esm2", "esm2", MODELS["esm2"], "c" * 64), ["a", "b", "p"]),
        (lambda: prepare("resources/dnabert_s", "dnabert_s", MODELS["dnabert_s"], "c" * 64), ["a", "b", "d"]),
        (lambda: os.remove("resources/esm2/model.json"), ["a", "b", "p"]),
        (write("resources/esm2/model.json", "{"), ["a", "b", "p"]),
    ],
)
def test_what_changed_is_pending_and_nothing_else(
    project: Path, change: Callable[[], object], wanted: list[str]
) -> None:
    change()
    assert pending() == wanted


def test_a_sequence_file_that_is_gone_does_not_hide_what_else_has_changed(project: Path) -> None:
    for sample in SAMPLES:
        os.remove(sample.fasta)
    assert pending() == []
    assert pending(chunk_length=300) == ["a", "b"]
    os.remove("results/p/embeddings.h5")
    assert find_pending(CONFIG, SAMPLES) == {"p": 0}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"chunk_length": 300}, ["a", "b"]),
        ({"precision": "fp32"}, ["a", "b", "p", "d"]),
        ({"store_dtype": "float32"}, ["a", "b", "p", "d"]),
        ({"pool": {"threads": 1, "tokens_per_batch": 64}, "seed": 7}, []),
        ({"models": {**CONFIG["models"], "esm2": {"weights": "synthetic:esm2_t12_35M_UR50D"}}}, ["a", "b", "p"]),
    ],
)
def test_a_changed_config_makes_pending_what_depends_on_it(
    project: Path, changed: dict[str, Any], wanted: list[str]
) -> None:
    assert pending(**changed) == wanted


def test_embeddings_that_are_still_in_the_spool_are_not_computed_again(project: Path) -> None:
    os.remove("results/a/embeddings.h5")
    outcome = read_receipt("results/a/receipt.json")
    assert outcome is not None
    Path(outcome.embeddings).parent.mkdir()
    Path(outcome.embeddings).touch()
    assert pending() == []
    os.remove(outcome.embeddings)
    assert pending() == ["a"]


def test_a_prepared_directory_is_used_where_it_is(project: Path) -> None:
    prepare("elsewhere/esm2", "esm2", "facebook/esm2_t6_8M_UR50D", "a" * 64)
    models = {**CONFIG["models"], "esm2": {"weights": "elsewhere/esm2"}}
    assert pending(models=models) == []
    prepare("elsewhere/esm2", "esm2", "facebook/esm2_t6_8M_UR50D", "c" * 64)
    assert pending(models=models) == ["a", "b", "p"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"weights": "elsewhere/esm2", "sha256": "f" * 64},
            f"models.esm2.sha256: elsewhere/esm2 was made from a checkpoint with digest {'0' * 64}, not {'f' * 64}; "
            "prepare the right one, or correct the digest",
        ),
        ({"weights": "elsewhere/dna"}, "models.esm2.weights: elsewhere/dna holds dnabert_s, not esm2"),
    ],
)
def test_a_prepared_directory_of_other_weights_is_refused(project: Path, entry: dict[str, str], problem: str) -> None:
    for name, model in (("esm2", "esm2"), ("dna", "dnabert_s")):
        prepare(f"elsewhere/{name}", model, MODELS[model], "a" * 64)
    with pytest.raises(ConfigError) as raised:
        make_plan({**CONFIG, "models": {**CONFIG["models"], "esm2": entry}}, {}, gpu=None, cores=2)
    assert str(raised.value) == problem
    assert not Path(".holdfast").exists()


def test_a_checkpoint_newer_than_what_was_made_of_it_makes_its_samples_pending(project: Path) -> None:
    Path("esm2.pt").touch()
    prepare("resources/esm2", "esm2", "esm2.pt", "a" * 64)
    made = os.stat("resources/esm2/model.json").st_mtime
    models = {**CONFIG["models"], "esm2": {"weights": "esm2.pt"}}
    os.utime("esm2.pt", (made - 10, made - 10))
    assert pending(models=models) == []
    os.utime("esm2.pt", (made + 10, made + 10))
    assert pending(models=models) == ["a", "b", "p"]


def test_a_plan_is_kept_for_the_jobs_of_the_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, "")
    os.remove("results/b/receipt.json")
    made = make_plan(CONFIG, {sample.sample: sample for sample in SAMPLES}, gpu=None, cores=2)
    assert (made.consumers, made.gpu, made.threads) == ([Share(0, ["b"])], None, 2)
    finish(SAMPLES[1], CONFIG)
    assert read_plan() == made
    digests = dict.fromkeys(MODELS, "d" * 64)
    (told_job,) = jobs_of(Path(made.path), 0, digests)
    assert (told_job.sample, told_job.chunk_length, told_job.models) == ("b", 500, digests)
    told = read_settings(made.pool_settings)
    assert told.models == {model: str(project / "resources" / model) for model in MODELS}
    assert (told.threads, told.tokens_per_batch, told.gpu, told.precision) == (2, 4096, None, "auto")
    assert CONFIG["pool"]["threads"] == 8


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
    report_failures(there, entries, below)
    assert Path("below/results/failures.tsv").read_text() == "sample\trow\treason\na\t\twhy\n"


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


@pytest.mark.parametrize(("cores", "consumers"), [(2, 2), (100, 16), (None, 16)])
def test_no_consumer_of_external_pools_waits_for_a_core_before_it_hands_in(
    project: Path, cores: int | None, consumers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = {**CONFIG["pool"], "lifecycle": "external", "spool": "spool", "replicas": 3}
    samples = {f"s{number}": Sample(f"s{number}", "a.faa", "proteins", "") for number in range(70)}
    made = make_plan({**CONFIG, "pool": pool}, samples, gpu=None, cores=cores)
    assert len(made.consumers) == consumers
    assert {share.replica for share in made.consumers} == {0}
    assert sum(len(share.samples) for share in made.consumers) == len(samples)
    assert "holdfast: no pool serves spool now" in capsys.readouterr().err
    assert not Path("spool").exists()


@pytest.mark.parametrize(("samples", "consumers"), [(9, 9), (100, 16), (4_000, 40)])
def test_a_consumer_has_one_sample_up_to_a_hundred_before_there_are_more(
    project: Path, samples: int, consumers: int
) -> None:
    made = make_plan(
        CONFIG, {f"s{n}": Sample(f"s{n}", "a.faa", "proteins", "") for n in range(samples)}, gpu=None, cores=None
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


def test_failures_are_told_and_listed(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, "")
    made = make_plan(CONFIG, {sample.sample: sample for sample in SAMPLES}, gpu=None, cores=2)
    report_failures(made, ["a", "b", "none"])
    assert capsys.readouterr() == ("", "")
    assert not Path("results/failures.tsv").exists()
    replace_receipt("a", state="failed", error="a.fna: is\tempty\nat all")
    replace_receipt("b", failures={"c1_chunk_1F1": "the worker died"})
    report_failures(made, ["a", "b", "p"])
    assert Path("results/failures.tsv").read_text() == (
        "sample\trow\treason\na\t\ta.fna: is empty at all\nb\tc1_chunk_1F1\tthe worker died\n"
    )
    told = capsys.readouterr().err
    assert "a: a.fna: is" in told
    assert "b c1_chunk_1F1: the worker died" in told
    finish(SAMPLES[0], CONFIG)
    finish(SAMPLES[1], CONFIG)
    report_failures(made, ["a", "b", "p"])
    assert not Path("results/failures.tsv").exists()
