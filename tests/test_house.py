"""The plan of the package: which folders there are, which way imports point, what stays free of torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).parents[1] / "workflow"
SCRIPTS = WORKFLOW / "scripts"
PACKAGE = SCRIPTS / "holdfast"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
ORDER = (  # a module imports from its own row and from those before it
    {"errors", "files", "documents", "processes"},
    {"sequences"},
    {"models"},
    {"spool"},
    {"results"},
    {"pool"},
    {"run"},
    {"report"},
    {"cli_rules", "cli_report", "cli", "__init__"},
)
TORCH = {"models", "results/training.py"}  # where torch may be imported as soon as the module is
TORCH_WHEN_CALLED = {"pool/worker.py", "results/classifier.py"}  # or inside a function
LONGEST_LINES = 400
MOST_FILES = 100


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """The folder of a module, or the module itself where it lies on top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Rooms of the package that a module imports from, and ``=x`` for a package ``x`` from elsewhere."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    parts = path.relative_to(PACKAGE).parts
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {f"={alias.name.partition('.')[0]}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(f"={(node.module or '').partition('.')[0]}")
        elif isinstance(node, ast.ImportFrom):
            inside = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            inside = [part for part in inside if part]
            found |= {inside[0]} if inside else {alias.name for alias in node.names}
    return found


def loaded(module: str) -> set[str]:
    """What a fresh Python has loaded after importing a module of the package."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import holdfast.{module}, sys; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {each.partition(".")[0] for each in ended.stdout.split()}


def test_the_folders_are_those_of_the_table_and_say_what_they_hold() -> None:
    assert {room(path) for path in PACKAGE.rglob("*.py")} == set().union(*ORDER)
    folders = [path.parent for path in PACKAGE.glob("*/__init__.py")]
    assert len(folders) <= 8
    assert all(ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) for folder in folders)


def test_files_are_few_and_short() -> None:
    assert len(MODULES) <= MOST_FILES
    lines = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > LONGEST_LINES} == {}
    assert len((WORKFLOW / "Snakefile").read_text().splitlines()) < 50
    assert len((WORKFLOW / "rules/common.smk").read_text().splitlines()) <= 130


def test_imports_point_one_way_between_folders() -> None:
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        place = next(number for number, rooms in enumerate(ORDER) if room(path) in rooms)
        allowed = set().union(*ORDER[: place + 1]) | {"__version__"}
        own = {found for found in imports(path) if not found.startswith("=")}
        wrong |= {name(path): own - allowed} if own - allowed else {}
        assert "=holdfast" not in imports(path), path
    assert wrong == {}


def test_torch_is_imported_only_where_models_are() -> None:
    at_once = {name(path) for path in MODULES if "=torch" in imports(path, everywhere=False)}
    at_all = {name(path) for path in MODULES if imports(path) & {"=torch", "=transformers", "=esm"}}
    assert {path for path in at_once if path not in TORCH and path.partition("/")[0] not in TORCH} == set()
    assert {path for path in at_all - at_once if path.partition("/")[0] not in TORCH} <= TORCH_WHEN_CALLED


@pytest.mark.parametrize("module", ["pool.supervisor", "pool.sample", "results.calls", "report.tally"])
def test_supervisor_readers_and_calls_run_without_torch(module: str) -> None:
    found = loaded(module)
    assert "numpy" in found
    assert not {"torch", "transformers"} & found


@pytest.mark.parametrize("module", ["cli", "run.client", "run.watch", "models.registry"])
def test_clients_and_the_snakefile_are_light(module: str) -> None:
    heavy = {"torch", "numpy", "h5py", "tokenizers", "jsonschema", "rich", "snakemake"}
    assert not heavy & loaded(module)


def test_the_public_names_are_few_and_import_nothing_until_they_are_used() -> None:
    code = "import holdfast, sys; print({'torch', 'numpy'} & set(sys.modules)); print(holdfast.__all__); "
    code += "print([getattr(holdfast, name).__name__ for name in holdfast.__all__ if name != '__version__'])"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    names = ["__version__", "embed", "open_model", "read"]
    assert ended.stdout == f"set()\n{names}\n{['embed', 'open_model', 'read_embeddings']}\n"


def test_the_workflow_names_every_file_of_the_package() -> None:
    named = (SCRIPTS / "holdfast.files").read_text().split()
    assert named == sorted(path.relative_to(SCRIPTS).as_posix() for path in SCRIPTS.rglob("*.py"))


def test_errors_are_caught_by_name() -> None:
    broad = {}
    for path in MODULES:
        handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
        names = [ast.unparse(handler.type) if handler.type else "everything" for handler in handlers]
        broad |= {name(path): names for _ in names if {"everything", "Exception"} & set(names)}
    assert broad == {}
