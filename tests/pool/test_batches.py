"""Batches hold every sequence once, keep the budget, mix samples, and let no job wait behind younger ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from holdfast.models.registry import Output, read_prepared
from holdfast.pool.batches import WINDOW_BATCHES, Batch, Queue, Recipe, batch_budgets, make_recipe
from holdfast.spool.job import Request
from hypothesis import given
from hypothesis import strategies as st

MEAN, RESIDUES = Output(6, "mean"), Output(6, "residues")
RECIPE = Recipe("a" * 64, (MEAN,), None, "")

LENGTHS = st.lists(st.integers(1, 400), max_size=60)


def added(queue: Queue, job: int, lengths: list[int]) -> None:
    queue.add(job, np.arange(len(lengths)), np.array(lengths, np.int32))


def drained(queue: Queue, partial: bool = True) -> list[Batch]:
    batches = []
    while (batch := queue.next(partial)) is not None:
        batches.append(batch)
    return batches


@given(st.lists(st.tuples(LENGTHS, st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 1000))
def test_every_sequence_is_in_one_batch_and_the_budget_is_kept(
    steps: list[tuple[list[int], int, bool]], budget_tokens: int
) -> None:
    queue = Queue(RECIPE, budget_tokens)
    waiting: dict[tuple[int, int], int] = {}

    def check(batch: Batch) -> None:
        members = list(zip(batch.jobs.tolist(), batch.sequences.tolist(), strict=True))
        assert batch.recipe is RECIPE
        assert len(members) == len(set(members)) > 0
        assert batch.lengths.tolist() == [waiting.pop(member) for member in members]
        assert batch.tokens == batch.lengths.sum()
        assert batch.tokens <= budget_tokens or len(members) == 1

    for job, (lengths, takes, partial) in enumerate(steps):
        added(queue, job, lengths)
        waiting |= {(job, number): length for number, length in enumerate(lengths)}
        for _ in range(takes):
            batch = queue.next(partial)
            assert (batch is None) == (not waiting or (not partial and sum(waiting.values()) < budget_tokens))
            if batch is not None:
                check(batch)
        assert queue.waiting_tokens == sum(waiting.values())
        assert queue.oldest == min((job for job, _ in waiting), default=None)
    for batch in drained(queue):
        check(batch)
    assert waiting == {}
    assert (queue.waiting_tokens, queue.oldest, queue.next(True)) == (0, None, None)


@pytest.mark.parametrize("longest", [168, 1026])
def test_a_thousand_tiny_jobs_fill_batches_like_one_large_one(longest: int) -> None:
    lengths = np.random.default_rng(1).integers(3, longest + 1, 10_000).astype(np.int32)
    one, many = Queue(RECIPE, 16_384), Queue(RECIPE, 16_384)
    one.add(0, np.arange(10_000), lengths)
    for job in range(1000):
        many.add(job, np.arange(10), lengths[10 * job : 10 * job + 10])
    large, tiny = drained(one), drained(many)
    least = lengths.sum() / 16_384
    assert len(large) <= 1.05 * least + 1
    assert len(tiny) <= 1.05 * least + 1
    jobs = [len(set(batch.jobs.tolist())) for batch in tiny[:-1]]
    assert min(jobs) > 5


def test_a_batch_holds_sequences_of_nearly_equal_length() -> None:
    lengths = np.random.default_rng(1).integers(3, 1027, 5_000).astype(np.int32)
    queue = Queue(RECIPE, 4_096)
    queue.add(0, np.arange(5_000), lengths)
    spread = [int(np.ptp(batch.lengths)) for batch in drained(queue)]
    assert np.median(spread) < 0.15 * (lengths.max() - lengths.min())


def test_without_partial_only_a_full_batch_is_given() -> None:
    queue = Queue(RECIPE, 100)
    added(queue, 0, [60])
    assert queue.next(partial=False) is None
    added(queue, 1, [39])
    assert queue.next(partial=False) is None
    added(queue, 2, [1])
    batch = queue.next(partial=False)
    assert batch is not None
    assert sorted(batch.lengths.tolist()) == [1, 39, 60]
    added(queue, 3, [5])
    assert queue.next(partial=False) is None
    batch = queue.next(partial=True)
    assert batch is not None
    assert (batch.jobs.tolist(), batch.sequences.tolist(), batch.lengths.tolist()) == ([3], [0], [5])


def test_a_sequence_longer_than_the_budget_travels_alone() -> None:
    queue = Queue(RECIPE, 100)
    added(queue, 0, [50, 20_000, 50])
    assert sorted(batch.lengths.tolist() for batch in drained(queue)) == [[50, 50], [20_000]]


def test_a_job_without_sequences_waits_for_nothing() -> None:
    queue = Queue(RECIPE, 100)
    added(queue, 0, [])
    assert (queue.oldest, queue.next(partial=True)) == (None, None)


@pytest.mark.parametrize("length", [3, 50, 400])
def test_an_old_job_does_not_wait_behind_younger_ones_longer_than_a_window(length: int) -> None:
    """Whatever the length of its sequences, while longer and shorter ones keep coming."""
    queue = Queue(RECIPE, 1000)
    random = np.random.default_rng(1)
    added(queue, 0, [length])
    for batches in range(20 * WINDOW_BATCHES):
        while queue.waiting_tokens < 40 * queue.budget_tokens:
            added(queue, batches + 1, random.integers(4, 300, 20).tolist())
        batch = queue.next(partial=False)
        assert batch is not None
        if 0 in batch.jobs:
            break
    assert batches <= 1.5 * WINDOW_BATCHES


def test_a_recipe_holds_what_the_vectors_depend_on_and_nothing_else() -> None:
    whole = Request("a" * 64, [MEAN], "whole", 0)
    assert make_recipe(whole, "float16") == make_recipe(whole, "float32") == RECIPE
    for long in ("truncate", "refuse"):  # what is cut off or left out is not in the tokens
        assert make_recipe(Request("a" * 64, [MEAN], long, 50), "float16") == RECIPE
    assert make_recipe(Request("a" * 64, [MEAN], "window", 50), "float16") == RECIPE._replace(window=50)
    both = Request("a" * 64, [MEAN, RESIDUES], "whole", 0)
    assert make_recipe(both, "float16") == Recipe("a" * 64, (MEAN, RESIDUES), None, "float16")
    assert make_recipe(both, "float32") == Recipe("a" * 64, (MEAN, RESIDUES), None, "float32")


def test_blocks_of_every_recipe_and_precision_have_a_directory_of_their_own() -> None:
    recipes = [
        RECIPE,
        RECIPE._replace(weights_sha256="b" * 64),
        RECIPE._replace(outputs=(Output(5, "mean"),)),
        RECIPE._replace(outputs=(Output(6, "max"),)),
        RECIPE._replace(outputs=(MEAN, RESIDUES), residues_dtype="float16"),
        RECIPE._replace(outputs=(MEAN, RESIDUES), residues_dtype="float32"),
        RECIPE._replace(window=50),
        RECIPE._replace(window=60),
    ]
    keys = {recipe.key(precision) for recipe in recipes for precision in ("fp32", "fp16", "bf16")}
    assert len(keys) == 3 * len(recipes)
    assert all(key == key.replace("/", "") for key in keys)
    assert RECIPE.key("fp32") == RECIPE._replace(outputs=(Output(6, "mean"),)).key("fp32")


@pytest.mark.parametrize(
    ("width", "asked", "device", "budget"),
    [
        (2560, None, "cuda:0", 16384),
        (1280, None, "cuda:1", 32768),
        (480, None, "cuda:0", 87381),
        (320, None, "cuda:0", 131072),
        (64, None, "cuda:0", 131072),
        (5120, None, "cuda:0", 16384),
        (480, None, "cpu:0", 16384),
        (480, 1000, "cuda:0", 1000),
    ],
)
def test_narrower_models_have_larger_batches_on_gpus(
    models: dict[str, Path], width: int, asked: int | None, device: str, budget: int
) -> None:
    model = replace(read_prepared(models["esm2"]), width=width)
    assert batch_budgets([model], asked, device) == {model.weights_sha256: budget}
