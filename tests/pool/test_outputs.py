"""Layers, poolings and models of choice through whole pools: several at once, long sequences, deaths, full disks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from holdfast.errors import ResourceError
from holdfast.models.prepare import prepare
from holdfast.models.registry import open_model, read_prepared
from holdfast.results.embeddings import read_embeddings
from transformers import EsmConfig, EsmModel

from tests.drills.faults import Fault, Injection
from tests.pool.conftest import (
    AMINO_ACIDS,
    DATA,
    ServedPool,
    compare,
    family,
    gone,
    job,
    proteins,
    records_table,
    submit,
)

OUTPUTS: dict[str, Any] = {"layers": [0, "last"], "pooling": ["mean", "max", "residues"]}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> dict[str, Path]:
    """Two sizes of ESM-2, an ESM C, an ESM-1b, and a DNABERT-S."""
    directory = tmp_path_factory.mktemp("many")
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    tokens: dict[str, Any] = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "token_dropout": True}
    torch.manual_seed(1)
    config = EsmConfig(**sizes, **tokens, position_embedding_type="rotary")
    EsmModel(config, add_pooling_layer=False).save_pretrained(directory / "published")
    sources = {"small": str(directory / "published"), "esmc": "synthetic:esmc_tiny", "esm1b": "synthetic:esm1b_tiny"}
    for name, source in sources.items():
        prepare(source, directory / name)
    return {**models, **{name: directory / name for name in sources}}


@pytest.fixture(scope="module")
def oracles(many: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Their encoders in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {model: open_model(directory, "cpu", "fp32") for model, directory in many.items()}
    torch.set_num_threads(threads)


def worker_of(pool: ServedPool) -> psutil.Process:
    """The process that holds the models, once it does."""
    pool.eventually(lambda: pool.state.state == "ready")
    (worker,) = [
        process for process in family(pool.process.pid) if "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    ]
    return worker


def test_models_of_one_family_and_of_others_serve_one_sample(
    serve: Callable[..., ServedPool], tmp_path: Path, many: dict[str, Path], oracles: dict[str, Any]
) -> None:
    pool = serve(models=many, tokens_per_batch=2048)
    random = np.random.default_rng(1)
    lengths = [30, 1, 1500, 7, 30, 1023, 1022, 250]
    texts = ["".join(random.choice(AMINO_ACIDS, length)) + "*" * (length % 2) for length in lengths]
    path = tmp_path / "p.faa"
    path.write_text("".join(f">p{number}\n{text}\n" for number, text in enumerate([*texts, texts[0], "*"])))
    jobs = [
        job(many, "all", path, "proteins", **OUTPUTS),
        job({name: many[name] for name in ("esm2", "esmc")}, "two", path, "proteins"),
        job(many, "contigs", DATA / "phage_heldout.fna", "contigs", layers=[1], pooling=["max"]),
    ]
    assert [len(entry.models) for entry in jobs] == [4, 2, 5]
    outcomes = submit(pool, *jobs)
    for entry in jobs:
        assert compare(outcomes[entry.sample], entry, many, oracles) > 0
    positions = ["ok", "ok", "windowed", "ok", "ok", "windowed", "ok", "ok", "ok", "too_short"]
    assert [row["status"] for row in records_table(outcomes["all"])] == positions
    reasons = {row["reason"] for row in records_table(outcomes["all"])}
    assert reasons == {"", "esm1b saw overlapping windows of 1022 (long: window)", "0 letters"}
    assert [row["status"] for row in records_table(outcomes["two"])] == ["ok"] * 9 + ["too_short"]
    matrices = read_embeddings(outcomes["all"].embeddings).attributes["matrices"]
    for name in jobs[0].models:
        assert matrices[f"{name}/0/residues"]["width"] == read_prepared(many[name]).width


def test_one_model_under_two_names_is_computed_once_and_ends_its_job_once(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """Names are the job's own; what they ask for alike has one recipe."""
    pool = serve()
    mine = {"mine": models["esm2"], "again": models["esm2"]}
    entry = job(mine, "s", proteins(tmp_path / "s.faa", 5, 20), "proteins")
    outcome = submit(pool, entry)["s"]
    assert compare(outcome, entry, mine, dict.fromkeys(mine, encoders["esm2"])) > 0
    pool.eventually(lambda: pool.state.progress.done == 1)
    assert pool.state.progress.sequences == 5
    after = job(models, "after", proteins(tmp_path / "after.faa", 5, 20, seed=2), "proteins")
    assert compare(submit(pool, after)["after"], after, models, encoders) > 0
    assert "Traceback" not in pool.log.read_text()


def test_residues_after_a_kill_are_those_of_an_undisturbed_pool(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """Every sequence fills a batch, so that batches are the same however often the work begins anew."""
    path = proteins(tmp_path / "s.faa", 300, 70)
    entry = job(models, "s", path, "proteins", **OUTPUTS)
    undisturbed = serve("undisturbed", tokens_per_batch=64)
    expected = submit(undisturbed, entry)["s"]
    assert compare(expected, entry, models, encoders) > 0
    slow = Injection(tmp_path / "faults", Fault("embed", "slow", words="0.2"))
    first = serve("first", tokens_per_batch=64, environment=slow.environment)
    first.spool.submit(entry)
    first.eventually(lambda: len(list(first.spool_path.glob("blocks/*/*/*.safetensors"))) > 2)
    children = family(first.process.pid)
    assert len(children) >= 2
    first.process.kill()
    first.ended()
    gone(children)
    assert first.claimed() == [f"{entry.job}.json"]
    second = serve("second", spool=first.spool_path, tokens_per_batch=64)
    outcome = submit(second, entry)["s"]
    assert (outcome.state, outcome.job) == ("done", entry.job)
    assert 3 <= outcome.counts["inherited"] < 300
    second.eventually(lambda: second.state.progress.done == 1)
    assert second.state.progress.sequences == 300 - outcome.counts["inherited"]
    for name in ("embeddings.h5", "records.tsv"):
        resumed, whole = (Path(each.embeddings).with_name(name).read_bytes() for each in (outcome, expected))
        assert resumed == whole
    assert list(first.spool_path.glob("blocks/*/*/*.safetensors")) == []


def test_a_protein_for_which_memory_really_lacks_is_too_long_and_the_sample_goes_on(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """Of a million residues the embedding of tokens alone takes 1.3 GB."""
    spare_bytes = 2**30
    pool = serve()
    worker = worker_of(pool)
    limit_bytes = worker.memory_info().vms + spare_bytes
    worker.rlimit(psutil.RLIMIT_AS, (limit_bytes, limit_bytes))
    path = proteins(tmp_path / "s.faa", 6, 40)
    short = job(models, "short", proteins(tmp_path / "short.faa", 6, 40), "proteins", **OUTPUTS)
    with open(path, "a") as file:
        file.write(f">long\n{'MKVWACDEFG' * 100_000}\n>last\nMKVW\n")
    outcomes = submit(pool, job(models, "s", path, "proteins", **OUTPUTS), short)
    outcome = outcomes["s"]
    reason = "esm2: cpu:0 has no memory for its 1000002 tokens, even alone"
    assert (outcome.state, outcome.failures) == ("done", {"long": reason})
    assert (outcome.counts["too_long"], outcome.counts["ok"], outcome.counts["failed"]) == (1, 7, 0)
    assert records_table(outcome)[6:] == [
        {"record": "long", "length": "1000000", "residues_used": "0", "status": "too_long", "reason": reason},
        {"record": "last", "length": "4", "residues_used": "4", "status": "ok", "reason": ""},
    ]
    found = read_embeddings(outcome.embeddings)
    assert found.ids == [*(f"p{number}" for number in range(6)), "last"]
    assert compare(outcomes["short"], short, models, encoders) > 0
    alone = read_embeddings(outcomes["short"].embeddings)
    for name, residues in alone.residues.items():
        assert len(found.residues[name]) == 7
        for ours, theirs in zip(found.residues[name], residues, strict=False):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert worker.is_running()
    assert pool.process.poll() is None


def test_a_block_that_cannot_be_written_ends_the_pool_with_the_path_and_no_sample(
    serve: Callable[..., ServedPool], tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    """The worker may write no file as large as this block, which is what a full disk is to it."""
    pool = serve("first")
    limit_bytes = 200_000
    worker_of(pool).rlimit(psutil.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    entry = job(models, "s", proteins(tmp_path / "s.faa", 1, 400), "proteins", **OUTPUTS)
    assert limit_bytes < 400 * 320 * 4
    with pytest.raises(ResourceError) as raised:
        submit(pool, entry)
    reason = f"{pool.spool_path}: File too large; mend that and run again, finished work is kept"
    assert reason in str(raised.value)
    assert pool.ended() == 1
    assert (pool.state.state, pool.state.reason) == ("failed", reason)
    assert "Traceback" not in pool.log.read_text()
    assert pool.spool.receipt(entry.job) is None
    assert pool.spool.waiting() == [f"{entry.job}.json"]
    assert [path for path in pool.spool_path.glob("blocks/*/*/*") if path.name.endswith(".partial")] == []
    second = serve("second", spool=pool.spool_path)
    assert compare(submit(second, entry)["s"], entry, models, encoders) > 0


def test_nucleotides_that_are_called_proteins_are_embedded_and_questioned_in_the_receipt(
    pool: ServedPool, tmp_path: Path, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    path = tmp_path / "odd.faa"
    path.write_text(">a\nACGTACGTACGTTTGA\n>b\nGGGATTACA\n")
    entry = job(models, "odd", path, "proteins")
    outcome = submit(pool, entry)["odd"]
    assert compare(outcome, entry, models, encoders) > 0
    question = "100% of its letters are A, C, G, T, U or N: are these really proteins? for nucleotides set kind to dna"
    assert outcome.warnings == [f"{question} or contigs"]
    assert f"odd: {question}" in pool.log.read_text()
    usual = job(models, "usual", DATA / "phage_proteins.faa", "proteins")
    assert submit(pool, usual)["usual"].warnings == []
