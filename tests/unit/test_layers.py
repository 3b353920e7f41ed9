"""Imports point one way, torch stays where it belongs, and small files stay small."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).parents[2] / "workflow"
PACKAGE = WORKFLOW / "scripts/holdfast"
TORCH = {
    "packed",
    "kernels",
    "steps",
    "encoder",
    "esm2",
    "dnabert_s",
    "pickled",
    "checkpoint",
    "reference",
    "synthetic",
    "weights",
    "pth",
    "training",
}
ORDER = [
    # what the Snakefile, consumers and the supervisor share: no torch
    *(
        "errors",
        "documents",
        "files",
        "models",
        "prepared",
        "fasta",
        "frames",
        "tokens",
        "manifest",
        "receipt",
        "provenance",
        "crate",
        "arrays",
        "sequences",
        "embeddings",
    ),
    *(
        "batching",
        "blocks",
        "pace",
        "progress",
        "status",
        "spool",
        "settings",
        "configuration",
        "plan",
        "standing",
        "ticker",
        "overview",
        "screen",
        "consumer",
        "reader",
    ),
    # models: torch, no pool
    *(
        "packed",
        "kernels",
        "steps",
        "encoder",
        "esm2",
        "dnabert_s",
        "layout",
        "reference",
        "pickled",
        "checkpoint",
        "synthetic",
        "weights",
    ),
    # the pool: torch only inside the functions of a worker
    *("sensors", "worker", "device", "readers", "ledger", "fleet", "pool", "embedder"),
    # what is made of embeddings
    *("uniprot", "calls", "classifier", "pth", "training", "summary"),
    # the report
    *("tally", "projection", "figures", "page"),
]


def imports(module: str, everywhere: bool) -> set[str]:
    """Names that a file imports: ``.x`` from the package, ``x`` from elsewhere; at its top, or everywhere in it."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(f".{node.module}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f".{alias.name}" for alias in node.names}
    return found


def loaded(module: str) -> set[str]:
    """What a fresh Python has loaded after importing a module of the package."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import holdfast.{module}, sys; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(WORKFLOW / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in ended.stdout.split()}


def test_every_file_has_its_place() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_a_file_imports_only_from_those_before_it(module: str) -> None:
    own = {name[1:] for name in imports(module, everywhere=True) if name.startswith(".")}
    assert own - {"__version__"} <= set(ORDER[: ORDER.index(module)])
    assert "holdfast" not in imports(module, everywhere=True)


def test_the_package_itself_imports_nothing() -> None:
    assert imports("__init__", everywhere=True) == set()


@pytest.mark.parametrize("module", ORDER)
def test_torch_is_imported_only_where_models_are(module: str) -> None:
    assert ("torch" in imports(module, everywhere=False)) <= (module in TORCH)
    if module not in TORCH | {"worker", "embedder"}:
        assert not {"torch", "transformers", "esm"} & imports(module, everywhere=True)
    if module not in TORCH | {"worker", "embedder", "classifier"}:
        assert "safetensors" not in imports(module, everywhere=True)


@pytest.mark.parametrize("module", ["pool", "reader", "calls", "classifier", "summary"])
def test_supervisor_readers_and_calls_run_without_torch(module: str) -> None:
    found = loaded(module)
    assert "numpy" in found
    assert not {"torch", "transformers"} & found


@pytest.mark.parametrize("module", ["consumer", "plan", "configuration", "status", "spool"])
def test_consumers_and_the_snakefile_are_light(module: str) -> None:
    found = loaded(module)
    assert "holdfast" in found
    assert not {"torch", "numpy", "h5py", "dnaio", "tokenizers", "jsonschema"} & found


def test_the_workflow_names_every_file_of_the_package() -> None:
    text = (WORKFLOW / "rules/common.smk").read_text()
    listed = re.search(r"for module in \(([^)]*)\)", text)
    assert listed is not None
    named = re.findall(r'"(\w+)"', listed[1])
    assert named == sorted(named)
    assert set(named) == {path.stem for path in PACKAGE.glob("*.py")}


def test_entry_points_hold_no_logic() -> None:
    scripts = sorted((WORKFLOW / "scripts").glob("*.py"))
    assert len(scripts) > 10
    for path in scripts:
        text = path.read_text()
        assert len(text.splitlines()) <= 80, path
        assert text.endswith('\n\nif __name__ == "__main__":\n    run(main)\n'), path
        functions = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        assert functions == ["main"], path


def test_every_script_that_a_rule_runs_is_there() -> None:
    rules = "".join(path.read_text() for path in (WORKFLOW / "rules").glob("*.smk"))
    used = set(re.findall(r'script\("(\w+)"\)', rules))
    assert used <= {path.stem for path in (WORKFLOW / "scripts").glob("*.py")}
    assert "serve_pool" in used


def test_the_snakefile_is_short() -> None:
    assert len((WORKFLOW / "Snakefile").read_text().splitlines()) < 50


def test_errors_are_caught_by_name() -> None:
    broad = {}
    for path in PACKAGE.glob("*.py"):
        handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
        names = [ast.unparse(handler.type) if handler.type else "everything" for handler in handlers]
        broad[path.stem] = [name for name in names if name in ("everything", "Exception")]
    assert {module: names for module, names in broad.items() if names} == {}
