"""Kills at random moments, and at chosen ones: nothing lost, doubled or changed, little computed twice."""

from pathlib import Path

import pytest
from holdfast.results.embeddings import read_embeddings

from tests.drills import drill
from tests.drills.conftest import Serve, check_equal, proteins
from tests.drills.faults import Fault, Injection, token_marker
from tests.drills.processes import blocks, eventually
from tests.workflow.conftest import fasta

SEQUENCES_PER_BATCH = 8
TOKENS_PER_BATCH = SEQUENCES_PER_BATCH * 64


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.thorough)])
def test_after_kills_at_random_moments_the_results_are_those_of_an_undisturbed_run(
    tmp_path: Path, models: Path, kills: int
) -> None:
    outcome = drill.drill(tmp_path, models, kills, seed=3)
    assert outcome.kills.total() == kills
    assert outcome.well, str(outcome)
    assert outcome.repeated <= outcome.kills["worker"], str(outcome)


def test_a_killed_supervisor_costs_at_most_the_batches_at_the_device(
    tmp_path: Path, models: Path, serve: Serve
) -> None:
    records = proteins(120, 62, 1)
    path = tmp_path / "sample.faa"
    path.write_text(fasta(records))
    tokens = 120 * 64
    undisturbed = serve(name="undisturbed")
    expected = read_embeddings(undisturbed.embed(undisturbed.job("sample", path))["sample"].embeddings)
    note, noted = Fault("embed", "note", after=True), []

    def kill_after(batches: int) -> None:
        """Kill a supervisor while its worker has the next batch, whose block is written but not handed over."""
        marker = token_marker(models, [*records.values()][batches * SEQUENCES_PER_BATCH])
        injection = Injection(tmp_path / f"faults-{batches}", note, Fault("embed", "wait", marker, after=True))
        pool = serve(environment=injection.environment, tokens_per_batch=TOKENS_PER_BATCH)
        pool.spool.submit(pool.job("sample", path))
        injection.wait_for()
        eventually(lambda: len(blocks(pool.spool.root)) == batches + 1)
        pool.process.kill()
        pool.process.wait()
        noted.extend(injection.notes())

    kills = [4, 8, 12]
    for batches in kills:
        kill_after(batches)
    injection = Injection(tmp_path / "faults", note)
    last = serve(environment=injection.environment, tokens_per_batch=TOKENS_PER_BATCH)
    outcome = last.embed(last.job("sample", path))["sample"]
    check_equal(read_embeddings(outcome.embeddings), expected)
    computed = sum(tokens for _, tokens in [*noted, *injection.notes()])
    assert computed == tokens  # the next pool finds that block, too
    assert last.log.read_text().count("is dead: took over 1 jobs and") == len(kills)
