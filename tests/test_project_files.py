"""Project files are consistent with the code and with each other."""

from __future__ import annotations

import re
import tomllib

import pytest
from helpers import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
YAML_FILES = [
    "CITATION.cff",
    ".pre-commit-config.yaml",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml")),
]


def loaded(name):
    return pytest.importorskip("yaml").safe_load((ROOT / name).read_text(encoding="utf-8"))


def section(title):
    return CONTRIBUTING.split(f"\n## {title}\n")[1].split("\n## ")[0]


def checks_of_the_readme():
    """The commands of the gate between the installation and the tests, without the environment's folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    gate = readme.split("\n## Two commands\n")[1].split("```bash\n")[2].split("\n```")[0]
    commands = [line.strip().removesuffix(" &&").removeprefix(".venv/bin/") for line in gate.splitlines()]
    return commands[2:-1]


def how_tos():
    """The list items of "How to": the file that each names first, and the other names in it."""
    items = re.findall(r"^- (.*(?:\n  .*)*)", section("How to"), flags=re.MULTILINE)
    for item in items:
        path, *others = re.findall(r"`([^`]+)`", item)
        yield path, [name.strip('"') for name in others if re.fullmatch(r'"?[A-Za-z_][\w.]*"?', name)]


def test_every_path_in_the_contributing_guide_exists():
    paths = {name for name in re.findall(r"`([^`\s]+)`", CONTRIBUTING) if re.search(r"/|\.(py|md|rst)$", name)}
    assert len(paths) > 25
    assert [path for path in sorted(paths) if not any(ROOT.glob(path))] == []


def test_the_contributing_guide_lists_every_folder_of_the_package():
    listed = set(re.findall(r"^\| `(skpbas/[\w/]+)/`", section("Layout"), flags=re.MULTILINE))
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("skpbas/*/**/__init__.py")}
    assert listed == folders


def test_names_in_the_how_tos_exist_in_the_files_they_refer_to():
    names = [(path, name) for path, others in how_tos() for name in others]
    assert len(names) > 20
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path, _ in names}
    assert [(path, name) for path, name in names if name not in texts[path]] == []


def test_the_contributing_guide_lists_every_check_of_the_readme():
    checks = checks_of_the_readme()
    assert len(checks) >= 5
    assert [check for check in checks if f"`{check}`" not in section("Checks")] == []


def test_the_hooks_are_the_checks_of_the_readme_except_the_tests():
    hooks = [
        hook["entry"].replace(" --force-exclude", "") for hook in loaded(".pre-commit-config.yaml")["repos"][0]["hooks"]
    ]
    assert hooks == [check.removesuffix(" .") for check in checks_of_the_readme()]


@pytest.mark.parametrize("name", YAML_FILES)
def test_a_yaml_file_loads(name):
    assert isinstance(loaded(name), dict)


def test_the_workflow_tests_the_lowest_supported_python_on_three_systems():
    matrix = loaded(".github/workflows/tests.yml")["jobs"]["newest"]["strategy"]["matrix"]
    assert f">={matrix['python-version'][0]}" == PYPROJECT["project"]["requires-python"]
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "windows", "macos"]


def test_the_version_is_defined_in_the_package_only():
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "skpbas/__init__.py"}
    assert "version" not in loaded("CITATION.cff")


def test_the_citation_matches_the_paper_in_the_guide():
    paper = loaded("CITATION.cff")["preferred-citation"]
    guide = " ".join((ROOT / "docs" / "method.rst").read_text(encoding="utf-8").split())
    assert f'"{paper["title"]}", {paper["journal"]} {paper["volume"]}({paper["issue"]}), {paper["year"]}' in guide
    assert paper["doi"] in guide
    assert paper["identifiers"][0]["value"] in guide
    assert ", ".join(f"{a['given-names'][0]}. {a['family-names']}" for a in paper["authors"]) in guide


def test_every_file_of_the_sdist_exists():
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
