"""Pools that share a cache: what one has computed another only reads, and no other vector is ever given to it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.pool.cache import Cache
from holdfast.results.embeddings import read_embeddings
from holdfast.spool.job import Receipt

from tests.pool.conftest import ServedPool, compare, job, proteins, submit

Serve = Callable[..., ServedPool]
Sharing = tuple[ServedPool, Path]


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Iterator[Sharing]:
    """A pool and its cache; its blocks go with each job, so what a later one finds was in the cache."""
    directory = tmp_path_factory.mktemp("sharing")
    pool = ServedPool(directory / "pool", models, cache=str(directory / "cache"))
    yield pool, directory / "cache"
    pool.stop()


def arrays(outcome: Receipt) -> dict[str, np.ndarray]:
    file = read_embeddings(outcome.embeddings)
    return dict(file.matrices) | {name: np.concatenate(parts) for name, parts in file.residues.items()}


def merged(directory: Path, name: str, *parts: Path) -> Path:
    """A file of the records of several, whose ids are made different."""
    text = "".join(part.read_text().replace(">", f">{number}_") for number, part in enumerate(parts))
    path = directory / name
    path.write_text(text)
    return path


def shelves(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


OUTPUTS: dict[str, Any] = {"layers": [3, "last"], "pooling": ["mean", "max", "residues"]}


def test_a_second_pool_computes_only_what_the_first_has_not(
    tmp_path: Path, serve: Serve, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    known, new = proteins(tmp_path / "known.faa", 40, 30), proteins(tmp_path / "new.faa", 5, 30, seed=2)
    cache = tmp_path / "cache"
    first = serve("first", cache=str(cache))
    one = job(models, "known", known, "proteins", **OUTPUTS)
    made = submit(first, one)["known"]
    assert (made.counts["cached"], made.origins) == (0, [])
    first.stop()
    second = serve("second", cache=str(cache))
    two = job(models, "both", merged(tmp_path, "both.faa", known, new), "proteins", **OUTPUTS)
    outcome = submit(second, two)["both"]
    counts = outcome.counts
    assert (counts["rows"], counts["cached"], counts["sequences"], counts["inherited"]) == (45, 40, 45, 0)
    assert counts["computed_tokens"] == 5 * 32
    (origin,) = outcome.origins
    assert (origin["pool"], origin["spool"]) == (made.pool["id"], str(first.spool_path))
    assert origin["holdfast_sha256"] == made.software["holdfast_sha256"]
    assert compare(outcome, two, models, encoders) > 0
    earlier, now = arrays(made), arrays(outcome)
    for name, values in earlier.items():
        np.testing.assert_allclose(now[name][: len(values)], values, rtol=1e-5, atol=1e-5)
    assert list(second.spool_path.glob("blocks/*/*/*")) == []


def test_what_is_known_is_not_computed_and_outputs_may_come_from_several_jobs(
    tmp_path: Path, sharing: Sharing, models: dict[str, Path]
) -> None:
    pool, _ = sharing
    path = proteins(tmp_path / "a.faa", 20, 30, seed=3)
    apart = [job(models, f"known-{name}", path, "proteins", pooling=[name]) for name in ("mean", "max")]
    made = {name: values for outcome in submit(pool, *apart).values() for name, values in arrays(outcome).items()}
    assert len(made) == 2
    outcome = submit(pool, job(models, "together", path, "proteins", pooling=["mean", "max"]))["together"]
    assert (outcome.counts["cached"], outcome.counts["computed_tokens"], outcome.seconds["device_s"]) == (20, 0, 0.0)
    found = arrays(outcome)
    assert found.keys() == made.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, made[name], rtol=1e-5, atol=1e-5)


def test_vectors_of_another_layer_pooling_window_or_dtype_are_never_taken(
    tmp_path: Path, sharing: Sharing, models: dict[str, Path]
) -> None:
    pool, cache = sharing
    path = proteins(tmp_path / "a.faa", 10, 30, seed=4)
    asked: list[dict[str, Any]] = [
        {},
        {"layers": [5]},
        {"pooling": ["max"]},
        {"pooling": ["cls"]},
        {"pooling": ["residues"]},
        {"pooling": ["residues"], "dtype": "float16"},
        {"long": "window", "max_length": 500},
    ]
    for number, changed in enumerate(asked):
        outcome = submit(pool, job(models, f"other{number}", path, "proteins", **changed))[f"other{number}"]
        assert (outcome.counts["cached"], outcome.origins) == (0, []), changed
        assert outcome.counts["computed_tokens"] == 10 * 32
    assert len(shelves(cache)) >= len(asked)


@pytest.mark.thorough
def test_vectors_of_other_weights_or_precision_are_never_taken(
    tmp_path: Path, serve: Serve, models: dict[str, Path]
) -> None:
    """Equal tokens, and a model that differs in one byte of its weights, and then another precision."""
    other = tmp_path / "other"
    shutil.copytree(models["esm2"], other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    described = json.loads((other / "model.json").read_text())
    described["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (other / "model.json").write_text(json.dumps(described))
    path, cache = proteins(tmp_path / "a.faa", 10, 30), tmp_path / "cache"
    for number, (directory, precision) in enumerate([(models["esm2"], "fp32"), (other, "fp32"), (other, "bf16")]):
        pool = serve(f"pool{number}", models={"esm2": directory}, cache=str(cache), precision=precision)
        entry = replace(job({"esm2": directory}, "a", path, "proteins"), precision=precision)
        outcome = submit(pool, entry)["a"]
        assert (outcome.state, outcome.counts["cached"]) == ("done", 0)
        assert len(shelves(cache)) == number + 1
        pool.stop()


def test_damage_is_noticed_and_what_it_hit_is_computed_again(
    tmp_path: Path, sharing: Sharing, models: dict[str, Path], encoders: dict[str, Any]
) -> None:
    pool, cache = sharing
    path = proteins(tmp_path / "a.faa", 20, 30, seed=5)
    before = set(cache.glob("*/*.safetensors"))
    submit(pool, job(models, "damaged", path, "proteins", layers=[1]))
    (segment,) = set(cache.glob("*/*.safetensors")) - before
    content = bytearray(segment.read_bytes())
    content[-5] ^= 0xFF
    segment.write_bytes(content)
    for name, cached in (("again", 19), ("mended", 20)):
        path.write_text(path.read_text() + "\n")  # of other content, or the result of the first would do
        entry = job(models, name, path, "proteins", layers=[1])
        outcome = submit(pool, entry)[name]
        assert outcome.counts["cached"] == cached
        assert compare(outcome, entry, models, encoders) > 0
    assert f"{segment}: 1 damaged vectors are not used" in pool.log.read_text()


def test_samples_of_one_content_at_once_are_kept_once(
    tmp_path: Path, sharing: Sharing, models: dict[str, Path]
) -> None:
    pool, cache = sharing
    path = proteins(tmp_path / "a.faa", 30, 30, seed=6)
    submit(pool, *(job(models, f"same{number}", path, "proteins", layers=[4]) for number in range(4)))
    (line,) = (line for line in Cache.open(cache).report() if "4/mean: " in line)
    assert "4/mean: 30 vectors, " in line
    assert list(pool.spool_path.glob("blocks/*/*/*")) == []


def test_a_cache_that_goes_or_cannot_be_written_costs_no_sample(
    tmp_path: Path, serve: Serve, models: dict[str, Path]
) -> None:
    path, cache = proteins(tmp_path / "a.faa", 5, 30), tmp_path / "cache"
    pool = serve("pool", cache=str(cache))
    submit(pool, job(models, "a", path, "proteins"))
    shutil.rmtree(cache)
    cache.write_text("in the way")
    path.write_text(path.read_text() + "\n")  # of other content, or the result of the first would do
    outcome = submit(pool, job(models, "b", path, "proteins"))["b"]
    assert (outcome.state, outcome.error, outcome.counts["cached"]) == ("done", "", 0)
    assert "vectors are not kept in the cache" in pool.log.read_text()


def test_a_directory_that_is_no_cache_ends_the_pool(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("")
    pool = serve("pool", cache=str(tmp_path / "data"))
    assert pool.ended() == 2
    assert "is no cache of vectors" in pool.log.read_text()
    assert os.listdir(tmp_path / "data") == ["file"]
