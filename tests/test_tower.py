"""The tower: imports run downward only, from beyond/ over the four files of the paper to support/ and configs/."""

import ast

import pytest

from tests.conftest import ROOT

FOUR = ("kgi", "finetune", "data", "model")
ALLOWED = {  # of a module or package: what it may import of this project
    "configs": {"configs"},
    "support": {"configs", "support"},
    "data": {"configs", "support"},
    "model": {"configs", "support"},
    "kgi": {"configs", "support", "data", "model"},
    "finetune": {"configs", "support", "data", "model"},
    "beyond": {"configs", "support", "beyond", *FOUR},
}
MODULES = [*(ROOT / f"{name}.py" for name in FOUR)]
MODULES += sorted(p for name in ("configs", "support", "beyond") for p in (ROOT / name).rglob("*.py"))


def imported(source, package):
    """What of this project a module imports, anywhere in it: a set of (line, top-level name)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [package if node.level else node.module]
        call = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
        if call in ("import_module", "__import__"):
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        found |= {(node.lineno, name.split(".")[0]) for name in names if name.split(".")[0] in ALLOWED}
    return found


def forbidden(source, place):
    """(line, name) of each import from a floor above, or from beside it. place: the top-level name of the module."""
    return sorted((line, name) for line, name in imported(source, place) if name not in ALLOWED[place])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    place = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not forbidden(path.read_text(), place)


@pytest.mark.parametrize(
    "place, line",
    [
        ("configs", "from support.files import read_json"),
        ("support", "import kgi"),
        ("support", "def f():\n    from beyond.link import main"),
        ("data", "import model as models"),
        ("model", "from data import TASKS"),
        ("model", "import numpy, beyond.embed, configs"),
        ("kgi", "if True:\n    import finetune"),
        ("kgi", "importlib.import_module('beyond.link')"),
        ("finetune", "from beyond import tag"),
    ],
)
def test_an_import_upward_is_found(place, line):
    assert forbidden(line, place) and not forbidden(line, "beyond")


def test_all_floors_are_looked_at():
    assert {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in MODULES} == ALLOWED.keys()
