"""Kills at random moments, and at chosen ones: nothing lost, doubled or changed, little computed twice."""

from pathlib import Path

from holdfast import embeddings

from tests.drills import drill
from tests.drills.conftest import Fault, Injection, RunningPool, Serve, check_equal, eventually, proteins
from tests.workflow.conftest import fasta

KILLS = 20
TOKENS_PER_BATCH = 512


def test_after_kills_at_random_moments_the_results_are_those_of_an_undisturbed_run(
    tmp_path: Path, models: Path
) -> None:
    outcome = drill.drill(tmp_path, models, KILLS, seed=3)
    assert outcome.kills.total() == KILLS
    assert (outcome.lost, outcome.doubled, outcome.changed, outcome.left) == (0, 0, 0, 0), str(outcome)
    assert outcome.repeated <= outcome.kills["worker"], str(outcome)


def test_a_killed_supervisor_costs_at_most_the_batches_at_the_device(
    tmp_path: Path, models: Path, serve: Serve
) -> None:
    path = tmp_path / "sample.faa"
    path.write_text(fasta(proteins(120, 62, 1)))
    tokens = 120 * 64
    undisturbed = serve(name="undisturbed")
    expected = embeddings.read(undisturbed.embed(undisturbed.job("sample", path))["sample"].embeddings)
    injection = Injection(tmp_path / "faults", Fault("embed", "note", after=True), Fault("embed", "slow", words="0.1"))

    def killed_after(batches: int) -> RunningPool:
        pool = serve(environment=injection.environment, tokens_per_batch=TOKENS_PER_BATCH)
        pool.spool.submit(pool.job("sample", path))
        eventually(lambda: len(list(pool.spool.root.glob("blocks/*/*/*.npy"))) >= batches)
        pool.process.kill()
        pool.process.wait()
        return pool

    kills = [4, 8, 12]
    for batches in kills:
        killed_after(batches)
    last = serve(environment=injection.environment, tokens_per_batch=TOKENS_PER_BATCH)
    outcome = last.embed(last.job("sample", path))["sample"]
    check_equal(embeddings.read(outcome.embeddings), expected)
    computed = sum(noted for _, noted in injection.notes())
    assert tokens <= computed <= tokens + len(kills) * TOKENS_PER_BATCH
    assert last.log.read_text().count("is dead: took over 1 jobs and") == len(kills)
