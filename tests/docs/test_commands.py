"""Every command that the pages print is run here, or by the test named beside it, or said to be untried.

Commands are the lines of blocks marked ``sh``, and what tables and sentences set as code that begins with a program.
The few names in capitals that a reader is to replace are replaced. A command of ``holdfast`` without arguments is only
named; it must be one. The Python of the README is run, too, and what docs/embeddings.md says of embedding by hand.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast.cli import COMMANDS
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records

from tests.workflow.conftest import Project, classifiers, models

__all__ = ["classifiers", "models"]  # fixtures

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "config/README.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
PROGRAMS = "holdfast|python3?|make|snakemake|snakedeploy|apptainer|docker|conda|sbatch|systemctl|git|pip"
NAMED = re.compile(rf"holdfast ({'|'.join(COMMANDS)}|COMMAND)( --\w+)?")
SNAKEMAKE = "snakemake -s workflow/Snakefile -d DIR"

# In the order in which they are run, in one checkout: the command as printed, and as run where that differs.
RUN = {
    ".venv/bin/snakemake -s workflow/Snakefile -d DIR --cores 8": f"{SNAKEMAKE} --cores 2",
    "holdfast status SPOOL": "holdfast status DIR/.holdfast/spool",
    "holdfast status DIR/.holdfast/spool": "",
    "holdfast frames FASTA --chunk-length 500 --nucleotides N.fna --proteins P.faa": "",
    "holdfast prepare SOURCE --output DIR": "holdfast prepare synthetic:esm2_t6_8M_UR50D --output prepared",
    "holdfast embed FASTA --model SOURCE --output OUT.h5": "holdfast embed P.faa --model prepared --output MADE.h5",
    "holdfast export EMBEDDINGS --model esm2 --output OUT.h5": (
        "holdfast export DIR/results/s/embeddings.h5 --model esm2 --output OUT.h5"
    ),
    "holdfast convert-classifier PTH OUT.safetensors": "",
    "cd project": "cd DIR",
    "snakemake -s HOLDFAST/workflow/Snakefile --cores 4 prepare": f"{SNAKEMAKE} --cores 2 prepare",
    "grep -l $(sha256sum < results/S/contigs.tsv | cut -d ' ' -f 1) results/runs/*.json": (
        "cd DIR && grep -l $(sha256sum < results/s/contigs.tsv | cut -d ' ' -f 1) results/runs/*.json"
    ),
    """python -c 'import h5py; print(h5py.File("results/S/embeddings.h5").attrs["job"])'""": (
        """cd DIR && python -c 'import h5py; print(h5py.File("results/s/embeddings.h5").attrs["job"])' | tee job"""
    ),
    "holdfast crate DIR/results --license https://spdx.org/licenses/CC-BY-4.0": "",
    "cd workflow/scripts && grep ^holdfast/ holdfast.files | xargs cat | sha256sum": (
        "test $(cd workflow/scripts && grep ^holdfast/ holdfast.files | xargs cat | sha256sum | cut -d ' ' -f 1) ="
        """ $(python -c 'import json; print(json.load(open("DIR/results/run.json"))["software"]["holdfast_sha256"])')"""
    ),
    "grep -l S-0123456789abcdef results/runs/*.json": "cd DIR && grep -l $(cat job) results/runs/*.json",
    "snakemake --unlock": f"{SNAKEMAKE} --unlock",
    "mkdir /shared/vectors && chgrp lab /shared/vectors && chmod 2770 /shared/vectors": (
        "mkdir vectors && chmod 2770 vectors"
    ),
    "holdfast cache /shared/vectors --limit 2TB": "holdfast cache vectors --limit 2TB",
    "holdfast cache /shared/vectors": "holdfast cache vectors",
    "holdfast cache /shared/vectors --prune 500GB": "holdfast cache vectors --prune 500GB",
    "holdfast cache /shared/vectors --verify": "holdfast cache vectors --verify",
}
# By whom else they are run.
EXTERNAL = "tests/drills/test_external.py"
IDENTITY = "tests/workflow/test_identity.py"
EXTENDING = "tests/docs/test_extending.py"
HERE = "tests/docs/test_commands.py"
ELSEWHERE = {
    "make demo": ".ci/run",
    "snakemake -d DIR": "tests/workflow/conftest.py",
    "make test": "Makefile",
    "make test-all": ".ci/run",
    "make .venv/installed": "Makefile",
    "make .venv/installed TORCH_INDEX=https://download.pytorch.org/whl/cpu": ".github/workflows/test.yml",
    ".venv/bin/holdfast embed demo/data/phage_proteins.faa --model synthetic:esm2_t6_8M_UR50D --output phage.npz": HERE,
    "make -C HOLDFAST .venv/installed": "Makefile",
    "snakemake --lint": "Makefile",
    "make format": "Makefile",
    "make bench": "tests/test_bench.py",
    "make drill KILLS=1000": "tests/drills/test_kills.py",
    "make fuzz PARSER=fasta SECONDS=3600": "tests/fuzz/test_fuzz.py",
    "make report DIR=demo": "tests/browser/test_report.py",
    "snakemake ... --report report.html": "tests/browser/test_report.py",
    "cd examples/module && ../../.venv/bin/snakemake --cores 2": "tests/workflow/test_module.py",
    "make owner OWNER=NAME": "tests/test_release.py",
    "python tests/slurm/cluster.py COMMAND": "tests/slurm/test_replicas.py",
    f"{SNAKEMAKE} --workflow-profile workflow/profiles/slurm --resources gpu=4": "tests/slurm/test_replicas.py",
    "sbatch examples/pool.sbatch POOL.yaml SPOOL": EXTERNAL,
    "systemctl --user stop holdfast-pool": EXTERNAL,
    "holdfast serve --config POOL.yaml --spool DIR --endpoint FILE": EXTERNAL,
    "holdfast serve --config POOL.yaml --spool /shared/spool --endpoint /tmp/my_pool.json": EXTERNAL,
    "holdfast status SPOOL --prometheus /var/lib/node_exporter/holdfast.prom": "tests/spool/test_view.py",
    """awk 'NR % 4 == 1 { $1 = $1 (NR % 8 == 1 ? "/1" : "/2") } 1' interleaved.fastq > reads.fastq""": HERE,
    "holdfast verify models/esm2_8m": "tests/run/test_verify.py",
    "holdfast verify ESM2_3B DNABERT_S --classifier 500_model.pth": "tests/run/test_verify.py",
    ".venv/bin/holdfast status DIR/.holdfast/spool --live": "tests/workflow/test_progress.py",
    "holdfast status holdfast/.holdfast/spool": "tests/workflow/test_progress.py",
    "holdfast export results/S/embeddings.h5 --model esm2 --output OUT.h5": "tests/workflow/test_provenance.py",
    "pip install .": "tests/test_cli.py",
    "pip install holdfast-*.whl": "tests/test_release.py",
    "cp examples/new_family/electra.py workflow/scripts/holdfast/models/electra.py": EXTENDING,
    "cp examples/new_family/test_electra.py tests/models/test_electra.py": EXTENDING,
    ".venv/bin/pytest tests/models/test_electra.py": EXTENDING,
    "holdfast forget SAMPLE -d DIR": IDENTITY,
    "holdfast forget soil_1 soil_2 -d DIR": IDENTITY,
    "snakemake --touch": IDENTITY,
    ".venv/bin/holdfast embed demo/data/phage_proteins.faa --model synthetic:esm2_t6_8M_UR50D --output phage.h5ad": (
        "tests/run/test_by_hand.py"
    ),
    "holdfast embed proteins.faa --model facebook/esm2_t33_650M_UR50D --output embeddings.h5": HERE,
    "holdfast embed proteins.faa --model Rostlab/prot_t5_xl_half_uniref50-enc --pooling mean,residues"
    " --output prott5.h5": HERE,
}
# What cannot be had where the tests run: hub, channels, container engines, a GPU, hours.
UNTRIED = (
    r"holdfast prepare (facebook|zhihan1996)/.*",
    r"snakedeploy pin-conda-envs ?.*",
    r"snakemake .* --software-deployment-method conda .*",
    r"snakemake -s HOLDFAST/workflow/Snakefile --workflow-profile HOLDFAST/workflow/profiles/slurm",
    r"snakemake -s workflow/Snakefile -d DIR --cores 4 --until prepare_weights",
    r"(apptainer|docker) build .*",
    r"sbatch --gpus=…",
    r"make (bench-gpu|soak)",
    r"make bench-families MODELS=.* DEVICE=cuda",
    r"python3 bench/passes.py",
    r"(\.venv/bin/)?pip install (umap-learn|snakemake-executor-plugin-slurm)",
    r"\.venv/bin/pip install --constraint envs/lock\.txt anndata",
    r"pip install snakemake-storage-plugin-(http|s3|zenodo)",
    r"samtools fasta .*",
    r"export HF_HUB_OFFLINE=1",
    r"python3 -m venv /tmp/new .*",
    r"/tmp/new/bin/pip freeze .*",
)


def printed() -> dict[str, str]:
    """Commands, without comments, and the page that prints each."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"(?ms)^```sh\n(.*?)^```", text):
            for line in block.replace("\\\n", " ").splitlines():
                found[re.sub(r" {2,}", " ", re.sub(r"\s+# .*", "", line)).strip()] = page.name
        outside = re.sub(r"(?ms)^```.*?^```", "", text)
        for code in re.findall(rf"`((?:\.venv/bin/)?(?:{PROGRAMS}) [^`]+)`", outside):
            found[" ".join(code.split())] = page.name
    return {command: page for command, page in found.items() if not NAMED.fullmatch(command)}


def test_every_printed_command_is_tried_or_said_to_be_untried() -> None:
    commands = printed()
    known = RUN.keys() | ELSEWHERE.keys()
    others = {command: page for command, page in commands.items() if command not in known}
    assert {c: page for c, page in others.items() if not any(re.fullmatch(pattern, c) for pattern in UNTRIED)} == {}
    assert known - commands.keys() == set()
    assert [pattern for pattern in UNTRIED if not any(re.fullmatch(pattern, command) for command in commands)] == []
    assert [place for place in ELSEWHERE.values() if not (REPOSITORY / place).is_file()] == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, models: Path, classifiers: Path) -> Path:
    """A checkout with a ``.venv``, and what the capitals in the commands stand for."""
    root = tmp_path_factory.mktemp("commands") / "holdfast"
    for name in ("workflow", "envs", "examples"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "LICENSE", root)
    (root / ".venv").symlink_to(sys.prefix)
    (root / "FASTA").symlink_to(REPOSITORY / "demo/data/phage_heldout.fna")
    (root / "PTH").symlink_to(classifiers / "500_model.pth")
    project = Project(root / "DIR", models, root)
    project.write("data/s.fna", (REPOSITORY / "demo/data/phage_heldout.fna").read_bytes())
    project.write_sheet(("s", "data/s.fna"))
    project.configure(classifier=str(classifiers / "500_model.pth"))
    return root


def test_commands_do_what_the_pages_say(checkout: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    environment |= {
        "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    for command, instead in RUN.items():
        ended = subprocess.run(
            instead or command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        assert "Traceback" not in ended.stderr
    assert (checkout / "DIR/results/report.html").is_file()
    assert (checkout / "DIR/results/ro-crate-metadata.json").is_file()
    assert (checkout / "MADE.h5").is_file()
    assert (checkout / "OUT.h5").is_file()
    assert (checkout / "OUT.safetensors").is_file()


def test_the_python_of_the_readme_does_what_it_says(checkout: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text())
    (said,) = re.findall(r"# (\(.*?) ?:", code)
    code = code.replace("facebook/esm2_t33_650M_UR50D", "synthetic:esm2_t6_8M_UR50D")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
    )
    assert (ended.returncode, ended.stdout) == (0, said.replace("1280", "320") + "\n"), ended.stderr
    (prepared,) = (tmp_path / "holdfast/models").iterdir()
    assert ended.stderr == f"holdfast: preparing synthetic:esm2_t6_8M_UR50D in {prepared}, once\n"


def test_mates_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    (command,) = re.findall(r"(?m)^awk .*$", (REPOSITORY / "docs/inputs.md").read_text())
    reads = [(f"r{number} length=4", mate) for number in (1, 2) for mate in ("ACGT", "GGTT")]
    (tmp_path / "interleaved.fastq").write_text("".join(f"@{name}\n{bases}\n+\nIIII\n" for name, bases in reads))
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    records = read_records(tmp_path / "reads.fastq", Alphabet.NUCLEOTIDE)
    assert [(record.id, record.sequence) for record in records] == [
        *(("r1/1", "ACGT"), ("r1/2", "GGTT")),
        *(("r2/1", "ACGT"), ("r2/2", "GGTT")),
    ]


# The models that the page names, and what stands for them here: the same families at other sizes.
SMALLER = {
    "facebook/esm2_t33_650M_UR50D": "synthetic:esm2_t6_8M_UR50D",
    "Rostlab/prot_t5_xl_half_uniref50-enc": "synthetic:prot_t5_tiny",
    "33/": "6/",
    "1280": "320",
    "model/24/": "model/3/",
    "(181, 1024)": "(181, 64)",
}


def test_embedding_by_hand_does_what_its_page_says(checkout: Path, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/embeddings.md").read_text()
    part = page.partition("\n## By hand\n")[2].partition("\n## ")[0]
    for theirs, ours in SMALLER.items():
        assert theirs in part
        part = part.replace(theirs, ours)
    proteins = (REPOSITORY / "demo/data/phage_proteins.faa").read_text().split(">")
    (tmp_path / "proteins.faa").write_text(">" + ">".join(proteins[1:4]))
    environment = {
        **os.environ,
        "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    printed = []
    for language, code in re.findall(r"(?ms)^```(sh|python|text)\n(.*?)^```", part):
        if language == "text":
            assert printed[-1] == code
            continue
        command = ["sh", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        printed.append(ended.stdout)
    assert len(printed) == 5
    assert printed[0].startswith("embeddings.h5: 3 embeddings of 3 records, synthetic esm on CPU")
    assert printed[2].startswith("prott5.h5: 3 embeddings of 3 records, synthetic t5 on CPU")
