"""Rules of the house that no linter knows."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import tfft

ROOT = Path(tfft.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 500
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    if "cli" not in path.relative_to(ROOT).parts:
        imported = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {getattr(n, "module", None) or n.names[0].name for n in imported}
        assert not {n for n in names if n.split(".")[0] == "absl"}, "flags belong to cli/"


@pytest.mark.parametrize(
    ("room", "table", "apart"),
    [
        ("tasks", "TASKS", {"classification", "multilabel"}),
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
                "saved_graph",
                "tensors",
            },
        ),
    ],
)
def test_every_file_of_a_room_stands_in_its_table(room, table, apart):
    package = importlib.import_module(f"tfft.{room}")
    files = {m.name for m in pkgutil.iter_modules(package.__path__)} - apart
    written_out = {"hf": "huggingface", "keras": "applications"}
    entries = {written_out.get(name, name) for name in getattr(package, table)}
    assert files == entries


def test_config_and_tables_agree():
    from typing import get_args

    from tfft.backbones import BACKBONES
    from tfft.config import methods as method_sections
    from tfft.config import sections
    from tfft.methods import METHODS
    from tfft.tasks import TASKS

    methods = get_args(get_args(method_sections.MethodConfig)[0])
    names = {get_args(m.model_fields["name"].annotation)[0] for m in methods}
    assert names == {*METHODS, "auto"}  # which stands for one of the others
    assert set(get_args(sections.TaskConfig.model_fields["name"].annotation)) == set(TASKS)
    assert set(sections.PROVIDERS) == set(BACKBONES)


def test_nothing_stands_in_both_metadata_files():
    project = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert "[project]" not in project and "[tool.ruff]" in project
