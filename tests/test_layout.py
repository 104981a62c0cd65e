"""The layout of the package: what a listing of its folders promises."""

import ast
import re
from collections import Counter

import pytest
from helpers import ROOT

PACKAGE = ROOT / "skpbas"
MODULES = sorted(PACKAGE.rglob("*.py"))
THIRD_PARTY = ("sklearn", "torch", "torchvision", "skorch", "joblib", "PIL", "numpy", "scipy")


def relative(path):
    return str(path.relative_to(ROOT))


def test_the_top_level_has_few_files():
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_no_two_modules_share_a_name():
    names = Counter(path.stem.lstrip("_") for path in MODULES if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_module_is_longer_than_a_reader_can_hold():
    assert [relative(path) for path in MODULES if len(path.read_text().splitlines()) > 500] == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_private_names_of_other_libraries_are_imported_in_one_module_only(path):
    private = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in THIRD_PARTY:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in THIRD_PARTY]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("torch.", "sklearn.")):
            names = [ast.unparse(node)]
        else:
            continue
        private += [name for name in names if re.search(r"\._(?!_)", name)]
    assert private == [] or path.name == "_compat.py"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_data_flows_one_way(path):
    """Each folder imports from those before it: core, inputs, features, training."""
    order = ["core", "_inputs", "_features", "_training", "_decisions"]
    folder = path.relative_to(PACKAGE).parts[0]
    if folder not in order:
        return
    later = order[order.index(folder) + 1 :]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skpbas."):
            assert node.module.split(".")[1] in {*order, "_compat", "errors"} - set(later)


_BENCHMARK = [
    *("published", "sources", "studies", "dilated_pro", "surroundings", "measuring", "runs", "tables", "grids"),
    *("wording", "bars", "html_page", "outputs"),
]


def test_only_the_command_line_uses_the_benchmark_whose_modules_import_one_way():
    assert sorted(_BENCHMARK) == sorted(p.stem for p in MODULES if p.parent.name == "_benchmark" and p.stem[0] != "_")
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skpbas._benchmark"):
                assert path.parent.name in ("_benchmark", "_cli")
                if path.parent.name == "_benchmark":
                    assert _BENCHMARK.index(node.module.split(".")[2]) < _BENCHMARK.index(path.stem)
