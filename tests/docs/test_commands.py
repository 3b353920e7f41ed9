"""Every command that the pages print is run here, or by the test named beside it, or said to be untried.

Commands are the lines of blocks marked ``sh``, and what tables and sentences set as code that begins with a program.
The few names in capitals that a reader is to replace are replaced.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import Project, classifiers, models

__all__ = ["classifiers", "models"]  # fixtures

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "config/README.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
PROGRAMS = "python3?|make|snakemake|snakedeploy|apptainer|docker|conda|sbatch|systemctl|git|pip"
SNAKEMAKE = "snakemake -s workflow/Snakefile -d DIR"

# In the order in which they are run, in one checkout: the command as printed, and as run where that differs.
RUN = {
    ".venv/bin/snakemake -s workflow/Snakefile -d DIR --cores 8": f"{SNAKEMAKE} --cores 2",
    "python workflow/scripts/pool_status.py SPOOL": "python workflow/scripts/pool_status.py DIR/.holdfast/spool",
    "python workflow/scripts/find_frames.py FASTA --chunk-length 500 --nucleotides N.fna --proteins P.faa": "",
    "python workflow/scripts/prepare_weights.py SOURCE --model esm2 --output DIR": (
        "python workflow/scripts/prepare_weights.py synthetic:esm2_t6_8M_UR50D --model esm2 --output prepared"
    ),
    "python workflow/scripts/embed_fasta.py FASTA --model esm2 --weights DIR --output OUT.h5": (
        "python workflow/scripts/embed_fasta.py P.faa --model esm2 --weights prepared --output EMBEDDINGS"
    ),
    "python workflow/scripts/export_embeddings.py EMBEDDINGS --model esm2 --output OUT.h5": "",
    "python workflow/scripts/convert_classifier.py PTH OUT.safetensors": "",
    "cd project": "cd DIR",
    "snakemake -s HOLDFAST/workflow/Snakefile --cores 4 prepare": f"{SNAKEMAKE} --cores 2 prepare",
    "grep -l $(sha256sum < results/S/contigs.tsv | cut -d ' ' -f 1) results/runs/*.json": (
        "cd DIR && grep -l $(sha256sum < results/s/contigs.tsv | cut -d ' ' -f 1) results/runs/*.json"
    ),
    """python -c 'import h5py; print(h5py.File("results/S/embeddings.h5").attrs["job"])'""": (
        """cd DIR && python -c 'import h5py; print(h5py.File("results/s/embeddings.h5").attrs["job"])' | tee job"""
    ),
    "python workflow/scripts/make_crate.py DIR/results --license https://spdx.org/licenses/CC-BY-4.0": "",
    "grep -l S-0123456789abcdef results/runs/*.json": "cd DIR && grep -l $(cat job) results/runs/*.json",
    "snakemake --unlock": f"{SNAKEMAKE} --unlock",
}
# By whom else they are run.
EXTERNAL = "tests/drills/test_external.py"
ELSEWHERE = {
    "make demo": ".ci/run",
    "snakemake -d DIR": "tests/workflow/conftest.py",
    "make test": ".ci/run",
    "make .venv/installed": "Makefile",
    "make -C HOLDFAST .venv/installed": "Makefile",
    "snakemake --lint": "Makefile",
    "make format": "Makefile",
    "make bench": "tests/unit/test_bench.py",
    "make drill KILLS=1000": "tests/drills/test_kills.py",
    "make fuzz PARSER=fasta SECONDS=3600": "tests/fuzz/test_fuzz.py",
    "make report DIR=demo": "tests/workflow/test_report.py",
    "snakemake ... --report report.html": "tests/workflow/test_report.py",
    "git apply examples/third_model/esm1b.patch": "tests/workflow/test_third_model.py",
    "cd examples/module && ../../.venv/bin/snakemake --cores 2": "tests/workflow/test_module.py",
    "git config url.MIRROR.insteadOf https://github.com/OWNER/holdfast": "tests/workflow/test_module.py",
    "python tests/slurm/cluster.py COMMAND": "tests/slurm/test_replicas.py",
    f"{SNAKEMAKE} --workflow-profile workflow/profiles/slurm --resources gpu=4": "tests/slurm/test_replicas.py",
    "sbatch examples/pool.sbatch POOL.yaml SPOOL": EXTERNAL,
    "systemctl --user stop holdfast-pool": EXTERNAL,
    "python workflow/scripts/serve_pool.py --config POOL.yaml --spool DIR --endpoint FILE": EXTERNAL,
    "python workflow/scripts/serve_pool.py --config POOL.yaml --spool /shared/spool --endpoint /tmp/my_pool.json": (
        EXTERNAL
    ),
    ".venv/bin/python workflow/scripts/pool_status.py DIR/.holdfast/spool --live": "tests/workflow/test_progress.py",
    "python workflow/scripts/export_embeddings.py results/S/embeddings.h5 --model esm2 --output OUT.h5": (
        "tests/workflow/test_provenance.py"
    ),
}
# What cannot be had where the tests run: hub, channels, container engines, a GPU, hours.
UNTRIED = (
    r"git clone https://github.com/.*",
    r"python workflow/scripts/prepare_weights.py (facebook|zhihan1996)/.*",
    r"snakedeploy (deploy-workflow https://github.com/OWNER|pin-conda-envs) ?.*",
    r"snakemake .* --software-deployment-method conda .*",
    r"snakemake -s HOLDFAST/workflow/Snakefile --workflow-profile HOLDFAST/workflow/profiles/slurm",
    r"snakemake -s workflow/Snakefile -d DIR --cores 4 --until prepare_weights",
    r"(apptainer|docker) build .*",
    r"sbatch --gpus=…",
    r"make (bench-gpu|soak)",
    r"pip install (anndata|umap-learn)",
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
    return found


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
            instead or command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=180
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        assert "Traceback" not in ended.stderr
    assert (checkout / "DIR/results/report.html").is_file()
    assert (checkout / "DIR/results/ro-crate-metadata.json").is_file()
    assert (checkout / "OUT.h5").is_file()
    assert (checkout / "OUT.safetensors").is_file()
