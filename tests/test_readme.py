"""The README's table "From the paper to the code": every name in it is in the file that it says."""

import ast
import re

import pytest

from tests.conftest import ROOT


def rows():
    """(paper, file, name) of each code name in the table, and (paper, pattern, "") of each pattern of files."""
    table = re.search(r"## From the paper to the code\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S)[1]
    for line in table.split("\n"):
        if not line.startswith("|") or line.startswith(("|---", "| paper")):
            continue
        paper, code = line.strip("|").split("|")
        file = ""
        for found in re.findall("`([^`]+)`", code):
            if "/" in found or found.endswith((".py", ".toml", ".sh")):
                file = found
                yield paper.strip(), file, ""
            else:
                yield paper.strip(), file, found


def names_in(path):
    """The functions, classes, methods and constants of a file, methods as Class.method too."""
    out = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.add(node.name)
        if isinstance(node, ast.ClassDef):
            out |= {f"{node.name}.{x.name}" for x in node.body if isinstance(x, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            out |= {x.id for target in node.targets for x in ast.walk(target) if isinstance(x, ast.Name)}
    return out


@pytest.mark.parametrize("paper, file, name", [*rows()])
def test_the_code_is_where_the_table_says(paper, file, name):
    found = list(ROOT.glob(file))
    assert found, f"{paper}: no {file}"
    if name:
        assert name in names_in(found[0]), f"{paper}: no {name} in {file}"


def test_the_table_names_the_four_files_and_each_section():
    found = list(rows())
    assert {"data.py", "model.py", "kgi.py", "finetune.py"} <= {file for _, file, _ in found}
    assert len(found) >= 40
