"""Architecture rules that no linter checks."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import tfft

ROOT = Path(tfft.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
VAGUE_NAMES = {"asked", "at", "found", "given", "kept", "made", "much", "one", "own", "told"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_short_documented_and_free_of_flags(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 500
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    assert ast.get_docstring(tree)
    if "cli" not in path.relative_to(ROOT).parts:
        imported = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {getattr(n, "module", None) or n.names[0].name for n in imported}
        assert not {n for n in names if n.split(".")[0] == "absl"}, "flags belong to cli/"
    classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
    fields = {id(n.target) for c in classes for n in c.body if isinstance(n, ast.AnnAssign)}
    variables = {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in fields}
    variables |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    assert not variables & VAGUE_NAMES, "a name says what a thing is"


@pytest.mark.parametrize(
    ("package_name", "table", "helpers"),
    [
        ("tasks", "TASKS", {"classification", "entities", "heads", "multilabel", "passages"}),
        ("methods", "METHODS", {"auto"}),
        (
            "backbones",
            "BACKBONES",
            {
                "blocks",
                "families",
                "hub_text",
                "kerashub_images",
                "pixels",
                "pooling",
                "saved_graph",
                "tensors",
                "towers",
            },
        ),
    ],
)
def test_a_table_lists_all_modules_of_its_package(package_name, table, helpers):
    package = importlib.import_module(f"tfft.{package_name}")
    modules = {m.name for m in pkgutil.iter_modules(package.__path__)} - helpers
    full_names = {"hf": "huggingface", "keras": "applications"}
    entries = {full_names.get(name, name) for name in getattr(package, table)}
    assert modules == entries


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_of_libraries_are_in_one_module(path):
    if path.name == "keras_internals.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    imported |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    assert not {n for n in imported if n.startswith(("keras.src", "tensorflow.python"))}
    private = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr.startswith("_")]
    private = [n for n in private if not n.attr.startswith("__")]
    # Its own: what `self` or a class has, and what the module defines or assigns.
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef)} | {"_exit", "_replace"}
    of_self = [
        n for n in private if isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")
    ]
    defined |= {n.attr for n in of_self if isinstance(n.ctx, ast.Store)}
    read = {n.attr for n in private if n not in of_self}
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    by_name = [n for n in calls if n.func.id in ("getattr", "hasattr", "setattr", "delattr")]
    names = [n.args[1].value for n in by_name if isinstance(n.args[1], ast.Constant)]
    read |= {n for n in names if n.startswith("_") and not n.startswith("__")}
    assert not read - defined


def test_config_and_tables_agree():
    from typing import get_args

    from tfft.backbones import BACKBONES
    from tfft.config import TASK_SECTIONS, sections
    from tfft.config import methods as method_sections
    from tfft.methods import METHODS
    from tfft.tasks import TASKS

    methods = get_args(get_args(method_sections.MethodConfig)[0])
    names = {get_args(m.model_fields["name"].annotation)[0] for m in methods}
    assert names == {*METHODS, "auto"}  # `auto` selects one of the others
    assert {name: task.section for name, task in TASKS.items()} == TASK_SECTIONS
    assert set(sections.PROVIDERS) == set(BACKBONES)


def test_metadata_and_tool_settings_are_in_separate_files():
    project = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert "[project]" not in project and "[tool.ruff]" in project
