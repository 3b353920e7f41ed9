"""Sequence files at URLs: a real server on loopback, Snakemake's own storage plugins, and what is fetched when."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import MEANS, REPOSITORY, NewProject, Project, fasta, jobs, stop_free_sequence

NOBODY = "http://127.0.0.1:9/x.fna"  # the port of discard, on which nothing listens


class Server(ThreadingHTTPServer):
    """Files of a directory over HTTP, and how often each was fetched."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._fetched = Counter[str]()
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(directory)))
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def write(self, name: str, seed: int) -> str:
        """Serve a contig of its own, compressed where the name says so; its URL."""
        text = fasta({"c": stop_free_sequence(600, seed)}).encode()
        (self.directory / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def fetched(self) -> set[str]:
        """What was fetched since the last time."""
        found = set(self._fetched)
        self._fetched.clear()
        return found

    def count(self, path: str) -> None:
        """Note that a file was fetched."""
        self._fetched[path.lstrip("/")] += 1

    def end(self) -> None:
        """Serve nothing any more."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.count(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.end()


def receipt(project: Project, sample: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(project.read(f"results/{sample}/receipt.json"))
    return content


def vectors(project: Project, sample: str) -> np.ndarray:
    return read_embeddings(project.path(f"results/{sample}/embeddings.h5")).matrices[MEANS["esm2"]]


def copies(project: Project) -> list[Path]:
    """Local copies of what was fetched."""
    return [path for path in project.path(".snakemake/storage").rglob("*") if path.is_file()]


def test_a_file_at_a_url_is_fetched_when_it_is_needed_and_known_by_what_the_server_says(
    project: NewProject, server: Server, classifiers: Path
) -> None:
    here = project()
    url = server.write("a.fna.gz", 1)
    here.write("data/b.fna", fasta({"c": stop_free_sequence(600, 1)}))
    here.write_sheet(("a", url, "contigs"), ("b", "data/b.fna", "contigs"))
    here.configure(classifier=str(classifiers / "500_model.safetensors"))
    first = here.run()
    assert first.returncode == 0, first.text
    assert first.jobs == jobs("a", "b", called=["a", "b"])
    assert server.fetched() == {"a.fna.gz"}
    assert copies(here) == []
    np.testing.assert_allclose(vectors(here, "a"), vectors(here, "b"), rtol=1e-3, atol=1e-3)
    status = (server.directory / "a.fna.gz").stat()
    known = receipt(here, "a")
    assert (known["url"], known["size_bytes"]) == (url, status.st_size)
    assert known["mtime_ns"] == int(status.st_mtime) * 10**9, "HTTP has whole seconds"
    assert len(known["input_sha256"]) == 64
    assert receipt(here, "b")["url"] == ""
    assert json.loads(here.read("results/run.json"))["samples"]["a"]["url"] == url
    made = vectors(here, "a")

    again = here.run()
    assert (again.returncode, [job for job in again.jobs if job != "all"]) == (0, []), again.text
    assert server.fetched() == set()

    # Of another time, with the same content: fetched, found to be the same, and not embedded again.
    os.utime(server.directory / "a.fna.gz", (0, status.st_mtime + 100))
    touched = here.run()
    assert touched.returncode == 0, touched.text
    assert "embed a" in touched.jobs
    assert "embed b" not in touched.jobs
    assert server.fetched() == {"a.fna.gz"}
    renewed = receipt(here, "a")
    assert renewed["mtime_ns"] == known["mtime_ns"] + 100 * 10**9
    assert (renewed["job"], renewed["finished"]) == (known["job"], known["finished"])
    assert here.run("-n").text.count("embed_0") == 0

    # Of other content: embedded.
    server.write("a.fna.gz", 3)
    os.utime(server.directory / "a.fna.gz", (0, status.st_mtime + 200))
    changed = here.run()
    assert changed.returncode == 0, changed.text
    assert receipt(here, "a")["job"] != known["job"]
    assert np.abs(vectors(here, "a") - made).max() > 1e-3
    server.fetched()

    # What is done needs no server.
    (server.directory / "a.fna.gz").unlink()
    gone = here.run()
    assert gone.returncode == 0, gone.text
    server.end()
    unreachable = here.run()
    assert unreachable.returncode == 0, unreachable.text
    assert f"holdfast: sample 'a': {url} cannot be reached: " in unreachable.text
    assert "; its results stay as they are" in unreachable.text
    assert not [job for job in gone.jobs + unreachable.jobs if job.startswith("embed")]


def test_what_is_wrong_with_a_url_is_said_by_sample_and_url_before_anything_runs(
    project: NewProject, server: Server
) -> None:
    here = project()
    missing = f"{server.write('a.fna', 5)}.old"
    here.write_sheet(("a", missing, "contigs"), ("b", NOBODY, "contigs"))
    refused = here.run()
    assert (refused.returncode, refused.jobs) == (1, [])
    assert f"sample 'a': {missing} does not exist, or may not be read by you" in refused.text
    assert f"sample 'b': {NOBODY} cannot be reached: " in refused.text
    assert "Connection refused" in refused.text
    assert "Traceback" not in refused.text

    queries = missing.removesuffix(".old")
    here.write_sheet(
        ("a", "zenodo://record/121246/a.fna", "contigs"),
        ("b", "gopher://example.org/b.fna", "contigs"),
        ("c", f"{queries}?id=1", "contigs"),
        ("d", f"{queries}?id=2", "contigs"),
        ("e", "https://example.org/{x}.fna", "contigs"),
    )
    refused = here.run()
    assert (refused.returncode, refused.jobs) == (1, [])
    assert re.search(
        r"sample 'a': zenodo://record/121246/a\.fna needs Snakemake's storage plugin zenodo; "
        r"run /\S*python\S* -m pip install snakemake-storage-plugin-zenodo\n",
        refused.text,
    )
    assert "sample 'b': gopher://example.org/b.fna: no storage plugin of Snakemake that is installed" in refused.text
    assert f"sample 'd': {queries}?id=2 would lie at .snakemake/storage/http/" in refused.text
    assert "sample 'e': https://example.org/{x}.fna holds braces" in refused.text
    assert "sample 'c'" not in refused.text


def test_a_module_takes_urls(project: NewProject, server: Server) -> None:
    around = project()
    url = server.write("a.fna", 7)
    config = {
        "models": around.models,
        "samples": [{"sample": "a", "fasta": url, "kind": "contigs"}],
    }
    around.write(
        "Snakefile",
        "module holdfast:\n"
        f"    snakefile: {str(REPOSITORY / 'workflow/Snakefile')!r}\n"
        f"    config: {config!r}\n"
        "    prefix: 'made'\n"
        "use rule * from holdfast as holdfast_*\n"
        "rule all:\n"
        "    default_target: True\n"
        "    input: rules.holdfast_all.input\n",
    )
    done = around.run("-s", str(around.path("Snakefile")))
    assert done.returncode == 0, done.text
    assert around.path("made/results/a/embeddings.h5").is_file()
    assert (server.fetched(), copies(around)) == ({"a.fna"}, [])
    again = around.run("-s", str(around.path("Snakefile")))
    assert (again.returncode, server.fetched()) == (0, set()), again.text


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """The address of an S3 server, moto's, with an empty bucket ``lab``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(tmp_path / "moto.log", "w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                put(f"http://127.0.0.1:{port}/lab", b"")
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "moto.log").read_text()
                assert time.monotonic() < until, (tmp_path / "moto.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def put(url: str, content: bytes) -> None:
    """Write a bucket or an object; moto wants a signature and does not check it."""
    signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Content-Type": "application/octet-stream", "Authorization": signed}
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT")).close()


@pytest.mark.skipif(
    find_spec("snakemake_storage_plugin_s3") is None or find_spec("moto") is None,
    reason="snakemake-storage-plugin-s3 and moto are not installed; envs/lock.txt has them",
)
def test_files_in_s3_are_read_and_known_by_what_the_store_says(project: NewProject, bucket: str) -> None:
    here = project()
    content = fasta({"c": stop_free_sequence(600, 11)}).encode()
    put(f"{bucket}/lab/assemblies/a.fna", content)
    here.write("data/b.fna", fasta({"c": stop_free_sequence(600, 12)}))
    here.write_sheet(("a", "s3://lab/assemblies/a.fna", "contigs"), ("b", "data/b.fna", "contigs"))
    settings = {f"SNAKEMAKE_STORAGE_S3_{key}": "test" for key in ("ACCESS_KEY", "SECRET_KEY")}
    settings |= {"SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": bucket, "AWS_EC2_METADATA_DISABLED": "true"}
    first = here.run(**settings)
    assert first.returncode == 0, first.text
    assert first.jobs == jobs("a", "b")
    assert copies(here) == []
    known = receipt(here, "a")
    assert (known["url"], known["size_bytes"]) == ("s3://lab/assemblies/a.fna", len(content))
    assert known["mtime_ns"] > 0
    again = here.run(**settings)
    assert (again.returncode, [job for job in again.jobs if job != "all"]) == (0, []), again.text

    time.sleep(1.1)  # S3 has whole seconds
    put(f"{bucket}/lab/assemblies/a.fna", fasta({"c": stop_free_sequence(600, 13)}).encode())
    changed = here.run(**settings)
    assert changed.returncode == 0, changed.text
    assert "embed a" in changed.jobs
    assert "embed b" not in changed.jobs
    assert receipt(here, "a")["job"] != known["job"]

    here.write_sheet(("a", "s3://lab/assemblies/none.fna", "contigs"), ("c", "s3://nobody/c.fna", "contigs"))
    refused = here.run(**settings)
    assert (refused.returncode, refused.jobs) == (1, [])
    assert "sample 'a': s3://lab/assemblies/none.fna does not exist, or may not be read by you" in refused.text
    assert "sample 'c': s3://nobody/c.fna does not exist, or may not be read by you" in refused.text
    assert "Traceback" not in refused.text
