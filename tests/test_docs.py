"""The documentation names what there is, and builds."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from skpbas import PBASDetector, core, datasets, errors, metrics, model_selection, presets, scorers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES_OF_THEIR_OWN = {"embedded"}  # modules of the core that docs/<name>.rst describes


def docs_text() -> str:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.rst")))
    return f"{pages}\n{inspect.getdoc(PBASDetector)}"


def two_commands() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.split("\n## Two commands\n")[1].split("\n## ")[0]


def python_blocks() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    for page in sorted(DOCS.glob("*.rst")):
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text):
            blocks.append(inspect.cleandoc(block))
    return blocks


def test_every_parameter_is_documented():
    text = docs_text()
    parameters = [name for name in inspect.signature(PBASDetector).parameters if name != "self"]
    assert [name for name in parameters if not re.search(rf"\b{name}\b", text)] == []


def test_every_fitted_attribute_is_documented():
    text = docs_text()
    fitted = [name for name in PBASDetector.__annotations__ if name.endswith("_") and not name.startswith("_")]
    assert len(fitted) > 8
    assert [name for name in fitted if not re.search(rf"\b{name}\b", text)] == []


def test_every_method_appears_in_the_guide():
    guide = (DOCS / "getting_started.rst").read_text(encoding="utf-8")
    methods = [name for name, value in vars(PBASDetector).items() if callable(value) and not name.startswith("_")]
    assert "anomaly_map" in methods
    assert [name for name in methods if not re.search(rf"\b{name}\b", guide)] == []


@pytest.mark.parametrize("module", [metrics, scorers, model_selection, datasets, presets, errors])
def test_the_reference_lists_every_public_name(module):
    reference = (DOCS / "api.rst").read_text(encoding="utf-8")
    names = getattr(module, "__all__", None) or [
        name for name in vars(module) if not name.startswith("_") and name not in ("annotations", "Any")
    ]
    assert [name for name in names if not re.search(rf"\b{name}\b", reference)] == []


def test_the_reference_lists_every_class_and_function_of_the_core():
    reference = (DOCS / "api.rst").read_text(encoding="utf-8")
    missing = []
    for info in iter_modules(core.__path__):
        if info.name in PAGES_OF_THEIR_OWN:
            continue
        module = import_module(f"skpbas.core.{info.name}")
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and callable(value)
            if own and not name.startswith("_") and f"{info.name}.{name}" not in reference:
                missing.append(f"{info.name}.{name}")
    assert missing == []


def test_python_blocks_are_python():
    blocks = python_blocks()
    assert len(blocks) >= 5
    for block in blocks:
        compile(block, "<block>", "exec")


def test_the_readme_has_two_commands_of_which_one_runs_the_demo_and_one_the_tests():
    section = two_commands()
    assert re.findall(r"^```(\S+)", section, flags=re.MULTILINE) == ["bash", "bash"]
    demo, tests = re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert demo.rstrip().endswith(".venv/bin/python -m skpbas demo")
    assert tests.rstrip().endswith(".venv/bin/python -m pytest")
    for block in (demo, tests):
        lines = block.rstrip().splitlines()
        assert lines[0].startswith("test -d .venv || python3 -m venv .venv")
        assert all(line.endswith(" &&") for line in lines[:-1])  # the first failure stops


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", ".pre-commit-config.yaml"])
def test_the_files_that_a_checkout_is_read_by_are_there(name):
    assert (ROOT / name).read_text(encoding="utf-8").strip()


def test_the_documentation_builds_without_warnings(tmp_path):
    for name in ("sphinx", "numpydoc", "sphinx_gallery", "pydata_sphinx_theme", "matplotlib"):
        pytest.importorskip(name)
    generated = shutil.ignore_patterns("_build", "auto_examples", "api", "gen_modules", "__pycache__")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=generated)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=generated)
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "html"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    example = (tmp_path / "html" / "auto_examples" / "plot_first_detector.html").read_text(encoding="utf-8")
    assert "pixel_pro" in example
    assert list((tmp_path / "html" / "_images").glob("sphx_glr_plot_first_detector_001*"))
    method = (tmp_path / "html" / "method.html").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r'class="eqno">\((\d+)\)', method)]
    assert numbers == list(range(1, 13))  # the article's
