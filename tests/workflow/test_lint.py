"""The workflow under the linters of its own tools."""

import subprocess
import sys
from pathlib import Path

from tests.workflow.conftest import REPOSITORY, TIMEOUT_S, NewProject


def test_snakemake_lint_has_nothing_to_say(project: NewProject) -> None:
    some = project()
    some.write("data/a.fna", ">r\nACGT\n")
    some.write_sheet(("a", "data/a.fna"))
    run = some.run("--lint")
    assert run.returncode == 0, run.text
    assert "Congratulations, your workflow is in a good condition!" in run.text


def test_the_workflow_is_formatted() -> None:
    command = [
        str(Path(sys.executable).with_name("snakefmt")),
        "--check",
        *(str(REPOSITORY / name) for name in ("workflow", "examples")),
    ]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 0, result.stderr
