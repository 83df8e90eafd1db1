"""Which package imports which, and that importing litlab or project changes nothing in the process."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# room -> rooms that its modules may import, in addition to their own room and the ground floor
GROUND = {"litlab", "litlab.errors", "litlab.files", "litlab.progress"}
ARROWS = {
    "litlab.cli": {"litlab.training", "litlab.runs", "litlab.data", "litlab.nn", "litlab.sources"},
    "litlab.training": {"litlab.runs", "litlab.data", "litlab.nn", "litlab.sources"},
    "litlab.data": {"litlab.sources"},
    "litlab.nn": set(),
    "litlab.sources": set(),
    "litlab.runs": set(),
    "project.models": {"litlab.nn", "litlab.sources"},
    "project.data": {"litlab.data", "litlab.sources"},
    "recipes.t5_documentation": {"litlab.nn", "litlab.data", "litlab.sources", "project.models", "project.data"},
}


def modules() -> dict[str, Path]:
    """All modules of the engine, the project and the recipes by name, except tests."""
    found = {}
    for top, folder in (("litlab", ROOT / "src"), ("project", ROOT / "src"), ("recipes", ROOT)):
        for file in (folder / top).rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            if "tests" not in parts and parts[-1] != "__main__":
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(module: str) -> str:
    """The room of a module; for the ground floor and top-level packages, the module's own name."""
    return next((room for room in ARROWS if module == room or module.startswith(f"{room}.")), module)


def names_in(file: Path) -> set[str]:
    """All names of modules that the import statements of a file may name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def written(module: str, file: Path, known: Iterable[str]) -> set[tuple[str, str]]:
    """The imports in the source code of a module, including those inside functions, which an import does not execute."""
    edges = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            edges |= {(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            edges |= {(module, name if name in known else node.module) for name in inner}
    return {edge for edge in edges if edge[1].partition(".")[0] in ("litlab", "project", "recipes")}


@pytest.fixture(scope="module")
def edges(imported: dict[str, Any]) -> set[tuple[str, str]]:
    """All imports between our modules: the executed ones, and those inside functions."""
    found = modules()
    executed = {tuple(edge) for edge in imported["edges"] if edge[0] in found}
    assert ("litlab.training.fit", "litlab.training.build") in executed
    return executed.union(*(written(name, file, found) for name, file in found.items()))


def test_every_module_is_in_a_room() -> None:
    packages = {"litlab", "project", "recipes", "litlab.__main__"}
    assert [name for name in modules() if room_of(name) not in {*ARROWS, *GROUND, *packages}] == []


def test_arrows_point_one_way(edges: set[tuple[str, str]]) -> None:
    wrong = [
        f"{user} imports {used}"
        for user, used in sorted(edges)
        if room_of(used) not in {room_of(user), *GROUND, *ARROWS.get(room_of(user), set())}
    ]
    assert wrong == []


def test_the_rooms_have_no_cycle(edges: set[tuple[str, str]]) -> None:
    arrows = {(room_of(user), room_of(used)) for user, used in edges if room_of(user) != room_of(used)}
    rooms = {room for arrow in arrows for room in arrow}
    while leaves := {room for room in rooms if not any(user == room and used in rooms for user, used in arrows)}:
        rooms -= leaves
    assert rooms == set()


def loaded_by(*groups: Iterable[str]) -> list[set[str]]:
    """The modules that a new interpreter has loaded after it imported each group of modules, one group after the other."""
    code = (
        "import importlib, json, sys\n"
        "for group in json.loads(sys.argv[1]):\n"
        "    for name in group: importlib.import_module(name)\n"
        "    print(json.dumps([*sys.modules]))"
    )
    command = [sys.executable, "-c", code, json.dumps([[*group] for group in groups])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def test_the_record_of_runs_and_the_front_door_need_no_torch() -> None:
    runs = [name for name in modules() if room_of(name) == "litlab.runs"]
    (loaded,) = loaded_by([*runs, "litlab.cli.main", "litlab.cli.commands", "litlab.cli.settings"])
    assert not loaded & {"torch", "lightning", "transformers", "pandas"}


def test_mnist_needs_no_transformers() -> None:
    """Except for the part that torchmetrics imports, which Lightning itself needs."""
    mnist = ("project.models.mnist_mlp", "project.data.mnist", "litlab.sources.hub", "litlab.sources.wheels")
    stock, loaded = loaded_by(["lightning.pytorch", "torchmetrics"], mnist)
    added = loaded - stock
    assert "project.data.mnist" in added
    assert not [name for name in added if name.partition(".")[0] in ("transformers", "datasets")]
    assert "transformers.models.bert.modeling_bert" not in stock


SNAPSHOT = """
import builtins, csv, importlib, json, logging, os, sys, warnings
import datasets, jsonargparse, lightning.pytorch, lightning.pytorch.cli, pyarrow.parquet, torch, torchmetrics, transformers, wandb, yaml
from transformers import AttentionInterface
import transformers.models.bert.modeling_bert, transformers.models.t5.modeling_t5

LIBRARIES = ("lightning", "pytorch_lightning", "torch", "torchmetrics", "transformers", "yaml", "jsonargparse", "wandb")

def classes():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in LIBRARIES and module is not None:
            for thing in list(vars(module).values()):
                if isinstance(thing, type) and thing.__module__.partition(".")[0] in LIBRARIES:
                    found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found

def attributes(cls):
    ignored = ("_abc_impl", "__doc__", "__annotations__", "__weakref__", "__dict__")
    return {name: id(value) for name, value in vars(cls).items() if name not in ignored}

def state():
    loggers = {name: logging.getLogger(name).level for name in sorted(logging.root.manager.loggerDict)}
    return {
        "environment": dict(os.environ),
        "warning filters": [repr(entry) for entry in warnings.filters],
        "log levels": {name: loggers.get(name, 0) for name in watched} if watched else loggers,
        "csv": csv.field_size_limit(),
        "transformers": transformers.logging.get_verbosity(),
        "attention": sorted(AttentionInterface().valid_keys()),
        "threads": torch.get_num_threads(),
        "yaml": sorted(map(repr, [*yaml.SafeDumper.yaml_multi_representers, *yaml.SafeDumper.yaml_representers])),
    }

# records every executed import statement with the module that contains it
edges, original = set(), builtins.__import__

def recording(name, globals=None, locals=None, fromlist=(), level=0):
    module = original(name, globals, locals, fromlist, level)
    if level == 0 and globals and name.partition(".")[0] in ("litlab", "project", "recipes"):
        inner = [f"{name}.{part}" for part in fromlist or () if f"{name}.{part}" in sys.modules]
        edges.update((globals.get("__name__", ""), imported) for imported in inner or [name])
    return module

watched = []
known = classes()
before = state()
watched = list(before["log levels"])
members = {name: attributes(cls) for name, cls in known.items()}
builtins.__import__ = recording
for name in sys.argv[1:]:
    importlib.import_module(name)
builtins.__import__ = original
after = state()
changed = [key for key in before if before[key] != after[key]]
changed += [name for name, cls in known.items() if attributes(cls) != members[name]]
print(json.dumps({"changed": changed, "classes": len(known), "edges": sorted(edges)}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """What a new interpreter records while it imports all our modules: their import statements, and what they change."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-c", SNAPSHOT, *modules()]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_engine_the_project_and_the_recipes_changes_nothing_in_the_process(
    imported: dict[str, Any],
) -> None:
    """No class is patched; no log level, warning filter, environment variable or other global setting changes."""
    assert imported["classes"] > 1000 and imported["changed"] == []


def pytest_without(room: Path, missing: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in an environment where some packages cannot be imported, as if their folders were deleted."""
    (room / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow and not fuzz", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(room)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_engines_tests_and_their_helpers_import_neither_project_nor_recipes() -> None:
    tests = ROOT / "tests"
    waiting, read = {tests / "conftest.py", *(tests / "litlab").rglob("*.py"), *(tests / "small").rglob("*.py")}, set()
    while waiting:
        read.add(file := waiting.pop())
        names = names_in(file)
        assert not [name for name in names if name.partition(".")[0] in ("project", "recipes")], file
        waiting |= {helper for name in names if (helper := tests / f"{name}.py").exists()} - read
    assert tests / "interruption.py" in read


@pytest.mark.slow
def test_the_engines_tests_pass_without_project_and_recipes(tmp_path: Path) -> None:
    done = pytest_without(tmp_path, ["project", "recipes"], "tests/litlab")
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
def test_the_experiments_train_without_recipes(tmp_path: Path) -> None:
    done = pytest_without(tmp_path, ["recipes"], "tests/project/test_experiments.py")
    assert done.returncode == 0, done.stdout[-5000:]


def test_no_configuration_of_the_project_names_a_class_of_a_recipe() -> None:
    assert not [file for file in (ROOT / "configs").rglob("*.yaml") if "class_path: recipes." in file.read_text()]


def test_no_module_of_the_engine_can_be_found_under_two_names() -> None:
    assert all(importlib.util.find_spec(name) for name in modules() if name.startswith("litlab"))
