"""``make owner OWNER=NAME``: write who owns the repository on GitHub into every text that says so.

``.github/owner`` holds the name and is empty as long as there is none. Without one the texts speak of a clone in the
current directory, so that no command in them has a placeholder. An empty OWNER takes the name out again.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / ".github/owner"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})|")  # as GitHub allows; empty for none
HERE = "https://github.com/{owner}/holdfast"
TAG = "v0.2.0"  # x-release-please-version
TESTS = f"{HERE}/actions/workflows/test.yml"
# By file, a text without an owner and what it becomes with one.
PLACES = {
    "README.md": (
        "# Holdfast\n\nYou give",
        f"# Holdfast\n\n[![tests]({TESTS}/badge.svg)]({TESTS})\n\nYou give",
    ),
    "CITATION.cff": ("type: software\n", f"type: software\nrepository-code: {HERE}\n"),
    "pyproject.toml": ("\n[project.scripts]\n", f'\n[project.urls]\nRepository = "{HERE}"\n\n[project.scripts]\n'),
    "docs/module.md": (
        '        "holdfast/workflow/Snakefile"\n',
        f'        github("{{owner}}/holdfast", path="workflow/Snakefile", tag="{TAG}")\n',
    ),
    "docs/offline.md": (
        "Snakedeploy (`deploy-workflow`), given the repository on GitHub, a directory `project` and `--tag`,\n",
        f"```sh\nsnakedeploy deploy-workflow {HERE} project --tag {TAG}\n```\n\n",
    ),
}


def write(owner: str) -> None:
    """Write another owner everywhere, or nobody.

    Raises:
        SystemExit: no name of GitHub's, or a text that is not as this program wrote it.
    """
    if not NAME.fullmatch(owner):
        raise SystemExit(f"OWNER={owner}: not a name of GitHub's: up to 39 letters, digits and '-'")
    former = FILE.read_text().strip()
    changed = {}
    for name, (without, named) in PLACES.items():
        old, new = (named.format(owner=who) if who else without for who in (former, owner))
        text = (ROOT / name).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{name}: does not hold {old!r} once; correct it, or PLACES in .github/owner.py")
        changed[name] = text.replace(old, new)
    for name, text in changed.items():
        (ROOT / name).write_text(text)
    FILE.write_text(f"{owner}\n" if owner else "")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "")
