"""A sample so large that all replicas of a run take part in it."""

from tests.workflow.conftest import NewProject


def test_every_replica_has_a_pool_while_a_large_sample_is_embedded(project: NewProject) -> None:
    """The file is large by what stands behind its ids, which costs nothing; parts are tried in tests/pool."""
    some = project()
    some.configure(pool={"replicas": 2, "threads": 1})
    with open(some.path("data/large.faa"), "w") as file:
        for number in range(2200):
            file.write(f">p{number} {'described ' * 6000}\n{'MKV' if number else 'MKVLA'}\n")
    some.write_sheet(("large", "data/large.faa", "proteins"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs.count("pool") == 2
    assert {"share_0", "share_1", "embed large"} <= set(run.jobs)
    assert some.table("large/records.tsv")["record"].tolist() == [f"p{number}" for number in range(2200)]
    logs = [some.read(f"logs/pool.{replica}.log") for replica in range(2)]
    assert sorted("large: done" in log for log in logs) == [False, True]
    assert not some.path(".holdfast/runs").exists()
    assert "Nothing to be done" in some.run("--dry-run").text
