"""The spool under several processes and against what others may put into it."""

import dataclasses
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from holdfast.errors import ResourceError
from holdfast.models.registry import Output
from holdfast.spool.job import Manifest, Receipt, Request
from holdfast.spool.spool import DIRECTORIES, Spool

ROOT = Path(__file__).parents[2]
ROUNDS = 1000

# Claims once for every line it is sent, and answers with the names of the jobs it got.
CLAIMER = """
import json, sys
from holdfast.spool.spool import Spool
spool = Spool(sys.argv[1])
spool.enroll(sys.argv[2])
for _ in sys.stdin:
    print(json.dumps([manifest.job for manifest in spool.claim(sys.argv[2], lambda _: True)]), flush=True)
"""


def job(sample: str = "s", **changed: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "dna",
        "fasta": "/data/s.fna",
        "input_sha256": hashlib.sha256(sample.encode()).hexdigest(),
        "size_bytes": 1,
        "chunk_length": 0,
        "genetic_code": 0,
        "models": {"dnabert_s": Request("a" * 64, [Output(12, "mean")], "refuse", 100_000)},
        "precision": "auto",
        "store_dtype": "float16",
    }
    return Manifest(sample=sample, **{**fields, **changed})


def enrolled(root: Path, *pools: str) -> Spool:
    """A spool in which pools may claim, ``pool`` unless told otherwise."""
    spool = Spool(root)
    for pool in pools or ("pool",):
        spool.enroll(pool)
    return spool


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another Python that can import the package; a bomb in it ends at 1 GiB."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(claimer: subprocess.Popen[str]) -> None:
    assert claimer.stdin is not None
    claimer.stdin.write("\n")
    claimer.stdin.flush()


def answer(claimer: subprocess.Popen[str]) -> list[str]:
    assert claimer.stdout is not None
    names: list[str] = json.loads(claimer.stdout.readline())
    return names


def failures(spool: Spool) -> dict[str, str]:
    """Error by name of the job, from the receipts of failed jobs."""
    found = {}
    for directory in (spool.root / "failed").iterdir():
        outcome = spool.receipt(directory.name)
        assert outcome is not None
        assert (outcome.state, outcome.job, outcome.embeddings) == ("failed", directory.name, "")
        found[directory.name] = outcome.error
    return found


def test_two_claimers_never_get_the_same_manifest(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with ExitStack() as stack:
        claimers = [stack.enter_context(python(CLAIMER, tmp_path, name)) for name in ("one", "two")]
        won = [0, 0]
        for number in range(ROUNDS):
            manifest = job(f"s{number}")
            staged = tmp_path / "staged.json"
            staged.write_text(manifest.dump())
            staged.rename(tmp_path / "incoming" / f"{manifest.job}.json")
            for claimer in claimers[:: 1 if number % 2 else -1]:
                ask(claimer)
            got = [answer(claimer) for claimer in claimers]
            assert sorted(got) == [[], [manifest.job]]
            won[got.index([manifest.job])] += 1
        for claimer in claimers:
            claimer.communicate()
    assert min(won) > 0, "one claimer was always first, so there was no contest"
    assert [len(os.listdir(tmp_path / "claimed" / name)) for name in ("one", "two")] == won
    assert spool.waiting() == []
    assert failures(spool) == {}


def test_a_half_written_manifest_is_never_seen(tmp_path: Path) -> None:
    spool, manifest = enrolled(tmp_path), job()
    code = """
import sys, time
from holdfast.files import atomic_text
with atomic_text(sys.argv[1]) as file:
    file.write(sys.argv[2])
    file.flush()
    print("half", flush=True)
    if sys.stdin.readline() == "go on\\n":
        file.write(sys.argv[3])
    else:
        time.sleep(60)
"""
    path, text = tmp_path / "incoming" / f"{manifest.job}.json", manifest.dump()
    for ending in ("stay", "go on"):
        with python(code, path, text[:50], text[50:]) as writer:
            assert writer.stdout is not None
            assert writer.stdin is not None
            assert writer.stdout.readline() == "half\n"
            assert spool.waiting() == []
            assert list(spool.claim("pool", lambda _: True)) == []
            writer.stdin.write(ending + "\n")
            writer.stdin.flush()
            if ending == "stay":
                writer.send_signal(signal.SIGKILL)
        assert list(spool.claim("pool", lambda _: True)) == ([] if ending == "stay" else [manifest])
    assert failures(spool) == {}


def test_writers_killed_at_any_moment_leave_whole_manifests(tmp_path: Path) -> None:
    spool = enrolled(tmp_path)
    code = """
import dataclasses, sys
from holdfast.spool.job import parse_manifest
from holdfast.spool.spool import Spool
spool, first = Spool(sys.argv[1]), parse_manifest(sys.stdin.readline(), "first")
print("begin", flush=True)
for number in range(10**9):
    spool.submit(dataclasses.replace(first, size_bytes=number, input_sha256=f"{number:064x}"))
"""
    text = job().dump() + "\n"
    claimed: list[str] = []
    for delay in range(8):
        with python(code, tmp_path) as writer:
            assert writer.stdout is not None
            assert writer.stdin is not None
            writer.stdin.write(text)
            writer.stdin.flush()
            writer.stdout.readline()
            until = time.monotonic() + 0.05 + 0.007 * delay
            while time.monotonic() < until or len(claimed) < 2 * delay:
                claimed += [manifest.job for manifest in spool.claim("pool", lambda _: True)]
            writer.send_signal(signal.SIGKILL)
        claimed += [manifest.job for manifest in spool.claim("pool", lambda _: True)]
    assert len(claimed) > 8
    assert failures(spool) == {}


SAFE, UNSAFE = job("good"), job("bad")
NAME = f"{UNSAFE.job}.json"


def text(content: str | bytes, name: str | bytes = NAME) -> Callable[[Path], None]:
    """Put a file into ``incoming/``."""

    def put(incoming: Path) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        with open(os.fsencode(incoming) + b"/" + os.fsencode(name), "wb") as file:
            file.write(raw)

    return put


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (text(""), "not JSON"),
    "not JSON": (text("{a: ["), "not JSON"),
    "a list": (text("[1, 2]"), "must hold names and values"),
    "wrong types": (text(UNSAFE.dump().replace('"size_bytes": 1', '"size_bytes": [1]')), "size_bytes"),
    "an endless number": (text(UNSAFE.dump().replace('"size_bytes": 1', f'"size_bytes": {"1" * 9000}')), "not JSON"),
    "a deep list": (text("[" * 60_000), "not JSON: nested too deeply"),
    "not UTF-8": (text(b"sample: \xff"), "not UTF-8"),
    "huge": (text(b"#" * 50_000_000), "larger than"),
    "binary": (text(os.urandom(1000)), ""),
    "another job's name": (text(SAFE.dump()), "the name does not fit the content"),
    "a name that is not UTF-8": (text(UNSAFE.dump(), b"bad\xff.json"), "the name does not fit the content"),
    "the longest name": (text(UNSAFE.dump(), "b" * 250 + ".json"), "the name does not fit the content"),
    "a link": (lambda incoming: os.symlink("/etc/hostname", incoming / NAME), "not a regular file"),
    "a dangling link": (lambda incoming: os.symlink("/nowhere", incoming / NAME), "not a regular file"),
    "a fifo": (lambda incoming: os.mkfifo(incoming / NAME), "not a regular file"),
    "a directory": (lambda incoming: (incoming / NAME).mkdir(), "not a regular file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_manifest_is_failed_and_the_others_are_claimed(name: str, tmp_path: Path) -> None:
    put, message = HOSTILE[name]
    spool = enrolled(tmp_path)
    put(tmp_path / "incoming")
    spool.submit(SAFE)
    with python(CLAIMER, tmp_path, "pool") as claimer:
        try:
            output, _ = claimer.communicate("\n", timeout=120)
        finally:
            claimer.kill()
    assert json.loads(output or "null") == [SAFE.job]
    ((refused, error),) = failures(spool).items()
    assert refused != SAFE.job
    assert message in error
    assert len(error) < 100_000
    assert os.listdir(tmp_path / "claimed" / "pool") == [f"{SAFE.job}.json"]
    assert spool.waiting() == []
    assert not Path("pwned").exists()


def test_the_target_of_a_link_is_left_alone(tmp_path: Path) -> None:
    spool, target = enrolled(tmp_path / "spool"), tmp_path / "target"
    target.write_text(UNSAFE.dump())
    (spool.root / "incoming" / NAME).symlink_to(target)
    assert list(spool.claim("pool", lambda _: True)) == []
    assert target.read_text() == UNSAFE.dump()


def test_a_refused_job_can_be_handed_in_again(tmp_path: Path) -> None:
    spool = enrolled(tmp_path)
    text("{")(tmp_path / "incoming")
    assert list(spool.claim("pool", lambda _: True)) == []
    assert UNSAFE.job in failures(spool)
    spool.submit(UNSAFE)
    assert spool.receipt(UNSAFE.job) is None
    assert list(spool.claim("pool", lambda _: True)) == [UNSAFE]


def test_a_spool_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spool = enrolled(tmp_path / "a" / "spool")
        list(spool.claim("pool", lambda _: True))
        spool.work_directory("pool", "job")
    finally:
        os.umask(before)
    directories = [spool.root, *(path for path in spool.root.rglob("*") if path.is_dir())]
    assert len(directories) == 1 + len(DIRECTORIES) + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777])
def test_a_spool_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    spool = Spool(tmp_path / "spool")
    spool.root.chmod(mode)
    with pytest.raises(ResourceError, match=r"spool.*: others may write to the spool; chmod 700"):
        Spool(spool.root)


def test_a_spool_is_refused_when_others_may_hand_jobs_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.root.chmod(0o755)
    Spool(spool.root)
    (spool.root / "incoming").chmod(0o777)
    with pytest.raises(ResourceError, match=r"incoming.*: others may write"):
        Spool(spool.root)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_the_spool_of_another_user_is_refused_and_left_alone(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(ResourceError, match="belongs to another user, uid 12345"):
        Spool(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_cannot_be_a_spool(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    with pytest.raises(ResourceError, match="the spool cannot be used: File exists"):
        Spool(tmp_path / "spool")


def test_messages_name_only_keys_that_the_config_has(tmp_path: Path) -> None:
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    (tmp_path / "spool").touch()
    with pytest.raises(ResourceError) as caught:
        Spool(tmp_path / "spool")
    named = [word.strip(".;,") for word in str(caught.value).split() if word.startswith("pool.")]
    assert [
        name for name in named if name.removeprefix("pool.") not in schema["properties"]["pool"]["properties"]
    ] == []


def test_the_oldest_job_is_claimed_first_and_keeps_its_place(tmp_path: Path) -> None:
    spool = enrolled(tmp_path)
    jobs = [job(name) for name in "cab"]
    for age, manifest in enumerate(jobs):
        spool.submit(manifest)
        os.utime(tmp_path / "incoming" / f"{manifest.job}.json", ns=(10**18 + age, 10**18 + age))
    assert spool.waiting() == [f"{manifest.job}.json" for manifest in jobs]
    spool.submit(jobs[0])
    assert spool.waiting() == [f"{manifest.job}.json" for manifest in jobs], "handed in again, it lost its place"
    assert list(spool.claim("pool", lambda _: True)) == jobs


def test_claims_are_given_back_in_their_old_order(tmp_path: Path) -> None:
    spool = enrolled(tmp_path, "dead", "next")
    jobs = [job(name) for name in "cab"]
    for age, manifest in enumerate(jobs):
        spool.submit(manifest)
        os.utime(tmp_path / "incoming" / f"{manifest.job}.json", ns=(10**18 + age, 10**18 + age))
    assert list(spool.claim("dead", lambda _: True)) == jobs
    (spool.work_directory("dead", jobs[0].job) / "half").touch()
    assert spool.give_back("dead") == 3
    assert not (tmp_path / "work" / "dead").exists()
    assert not (tmp_path / "claimed" / "dead").exists()
    assert list(spool.claim("next", lambda _: True)) == jobs
    assert spool.give_back("dead") == 0


def test_only_as_much_is_claimed_as_is_asked_for(tmp_path: Path) -> None:
    spool = enrolled(tmp_path)
    for name in "abc":
        spool.submit(job(name))
    for _ in spool.claim("pool", lambda _: True):
        break
    assert len(spool.waiting()) == 2
    assert len(os.listdir(tmp_path / "claimed" / "pool")) == 1


@pytest.mark.parametrize("claimed", [False, True])
def test_a_job_on_its_way_is_not_handed_in_twice_and_its_old_failure_is_forgotten(
    tmp_path: Path, claimed: bool
) -> None:
    spool = enrolled(tmp_path)
    spool.submit(job())
    if claimed:
        assert list(spool.claim("pool", lambda _: True)) == [job()]
    (tmp_path / "failed" / job().job).mkdir()
    Receipt(job().job, "s", "failed", error="long ago").write(tmp_path / "failed" / job().job / "receipt.json")
    spool.submit(job())
    assert spool.waiting() == ([] if claimed else [f"{job().job}.json"])
    assert spool.receipt(job().job) is None


def test_a_pool_that_was_taken_for_dead_finishes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    spool = enrolled(tmp_path, "slow", "other")
    first, second = job("a"), job("b")
    spool.submit(first)
    assert list(spool.claim("slow", lambda _: True)) == [first]
    work = spool.work_directory("slow", first.job)
    spool.check_claims("slow", first.job)
    assert spool.give_back("slow") == 1
    assert list(spool.claim("other", lambda _: True)) == [first]
    spool.submit(second)
    assert list(spool.claim("slow", lambda _: True)) == []
    for what in ("", first.job):
        with pytest.raises(
            ResourceError, match="pool slow has lost its claims: it stood still for longer than lease_s"
        ):
            spool.check_claims("slow", what)
    work.mkdir(parents=True)
    with pytest.raises(ResourceError, match="has lost its claims"):
        spool.finish("slow", Receipt(first.job, "a", "failed", error="late"), work)
    assert spool.receipt(first.job) is None
    assert spool.waiting() == [f"{second.job}.json"]
    spool.check_claims("other", first.job)


def test_a_receipt_names_the_embeddings_where_this_host_sees_them(tmp_path: Path) -> None:
    spool = enrolled(tmp_path / "here")
    spool.submit(job())
    list(spool.claim("pool", lambda _: True))
    work = spool.work_directory("pool", job().job)
    (work / "embeddings.h5").touch()
    there = Receipt(job().job, "s", "done", embeddings=f"/there/done/{job().job}/embeddings.h5")
    spool.finish("pool", there, work)
    here = tmp_path / "here" / "done" / job().job / "embeddings.h5"
    assert here.exists()
    assert spool.receipt(job().job) == dataclasses.replace(there, embeddings=str(here))


def test_a_spool_of_another_format_is_refused(tmp_path: Path) -> None:
    Spool(tmp_path)
    (tmp_path / "format").write_text("1\n")
    with pytest.raises(
        ResourceError, match=r"a spool of format 1, this version of Holdfast reads 4; name another directory, or"
    ):
        Spool(tmp_path)


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_finished_job_has_a_receipt_and_no_claim(tmp_path: Path, state: str) -> None:
    spool, manifest = enrolled(tmp_path), job()
    spool.submit(manifest)
    list(spool.claim("pool", lambda _: True))
    work = spool.work_directory("pool", manifest.job)
    (work / "embeddings.h5").write_text("vectors")
    assert spool.receipt(manifest.job) is None
    outcome = Receipt(manifest.job, "s", state, error="why" if state == "failed" else "")
    spool.finish("pool", outcome, work)
    assert spool.receipt(manifest.job) == outcome
    assert (tmp_path / state / manifest.job / "embeddings.h5").read_text() == "vectors"
    assert os.listdir(tmp_path / "claimed" / "pool") == []
    assert not work.exists()
    assert spool.give_back("pool") == 0


def test_a_work_directory_is_new_and_empty(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (spool.work_directory("pool", "job") / "old").touch()
    assert os.listdir(spool.work_directory("pool", "job")) == []


def test_earlier_results_of_a_sample_are_forgotten_and_no_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    names = {"old": job("a", precision="fp32"), "new": job("a"), "longer": job("a-b"), "other": job("b")}
    for state in ("done", "failed"):
        for manifest in names.values():
            directory = tmp_path / state / manifest.job
            directory.mkdir()
            Receipt(manifest.job, manifest.sample, state).write(directory / "receipt.json")
    spool.forget({"a": names["new"].job})
    left = {name for name, manifest in names.items() if spool.receipt(manifest.job)}
    assert left == {"new", "longer", "other"}
