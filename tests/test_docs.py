"""The documentation matches the code, and builds."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

from skpbas import (
    PBASDetector,
    core,
    datasets,
    errors,
    export,
    inspection,
    masks,
    metrics,
    model_selection,
    presets,
    runtime,
    scorers,
)
from skpbas._features.streaming import StreamingMixin
from skpbas.calibration import ConformalThreshold
from skpbas.datasets import make_inspection_images

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTED_ELSEWHERE = {"backbones.embedded"}  # modules of the core described in docs/<name>.rst


def two_commands() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.split("\n## Two commands\n")[1].split("\n## ")[0]


HEADINGS = ["Features", "Input", "Method", "Training", "Scoring", "Runtime"]
ESTIMATORS = [PBASDetector, ConformalThreshold]


def documented(estimator, section):
    """Return the entries of a docstring section of a class in order: name, type and description of each."""
    entries = pytest.importorskip("numpydoc.docscrape").NumpyDocString(inspect.getdoc(estimator))[section]
    return [
        (name, entry.type, " ".join(entry.desc))
        for entry in entries
        for name in entry.name.split(", ")
        if name not in HEADINGS
    ]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_parameter_is_documented_in_order_with_its_default(estimator):
    parameters = inspect.signature(estimator).parameters
    entries = documented(estimator, "Parameters")
    assert [name for name, _, _ in entries] == list(parameters)
    shared = {}  # defaults of "a, b : float, default=1, 2", by their shared type
    for name, kind, text in entries:
        assert kind
        assert text.endswith(".")
        if parameters[name].default is inspect.Parameter.empty:
            continue
        defaults = kind.split("default=")[1]
        options = shared.setdefault(kind, [defaults] if defaults.count("(") else defaults.split(", "))
        assert ast.literal_eval(options.pop(0) if len(options) > 1 else options[0]) == parameters[name].default, name


def test_the_parameters_of_the_detector_are_grouped_under_headings():
    entries = pytest.importorskip("numpydoc.docscrape").NumpyDocString(inspect.getdoc(PBASDetector))["Parameters"]
    assert [entry.name for entry in entries if entry.name in HEADINGS] == HEADINGS
    assert all(entry.desc and not entry.type for entry in entries if entry.name in HEADINGS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exactly_the_fitted_attributes_are_documented(estimator):
    images = make_inspection_images(6, 0, size=32, random_state=0).images
    detector = PBASDetector("embedded", image_size=32, max_epochs=1, device="cpu", random_state=0)
    if estimator is ConformalThreshold:
        detector = ConformalThreshold(detector, max_false_alarm_rate=0.3, cv=2, random_state=0)
    computed = [name for name, _ in inspect.getmembers(estimator, lambda member: isinstance(member, property))]
    fitted = {*vars(detector.fit(images)), *computed}
    fitted = {name for name in fitted if name.endswith("_") and not name.startswith("_")}
    names = {name for name, _, _ in documented(estimator, "Attributes")}
    assert names - {"n_features_in_", "feature_names_in_"} == fitted


def test_every_method_appears_in_the_guide():
    guide = (DOCS / "getting_started.rst").read_text(encoding="utf-8")
    own = [vars(base) for base in (PBASDetector, StreamingMixin)]
    methods = [name for names in own for name, value in names.items() if callable(value) and not name.startswith("_")]
    assert {"anomaly_map", "score_stream"} <= set(methods)
    assert [name for name in methods if not re.search(rf"\b{name}\b", guide)] == []


MODULES = [metrics, scorers, masks, model_selection, datasets, presets, errors, export, runtime, inspection]


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_lists_every_public_name(module):
    reference = (DOCS / "api.rst").read_text(encoding="utf-8")
    names = getattr(module, "__all__", None) or [
        name for name in vars(module) if not name.startswith("_") and name not in ("annotations", "Any")
    ]
    assert [name for name in names if not re.search(rf"\b{name}\b", reference)] == []


def test_the_reference_lists_every_class_and_function_of_the_core():
    reference = (DOCS / "api.rst").read_text(encoding="utf-8")
    missing = []
    for info in walk_packages(core.__path__, "skpbas.core."):
        place = info.name.removeprefix("skpbas.core.")
        if place in DOCUMENTED_ELSEWHERE:
            continue
        module = import_module(info.name)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and callable(value)
            if own and not name.startswith("_") and f"{place}.{name}" not in reference:
                missing.append(f"{place}.{name}")
    assert missing == []


def test_the_readme_has_one_command_for_the_demo_and_one_for_the_tests():
    section = two_commands()
    assert re.findall(r"^```(\S+)", section, flags=re.MULTILINE) == ["bash", "bash"]
    demo, tests = re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert demo.rstrip().endswith(".venv/bin/python -m skpbas demo")
    assert tests.rstrip().endswith(".venv/bin/python -m pytest -n 2")
    for block in (demo, tests):
        lines = block.rstrip().splitlines()
        assert lines[0].startswith("test -d .venv || python3 -m venv .venv")
        assert all(line.endswith(" &&") for line in lines[:-1])  # the first failure stops


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", ".pre-commit-config.yaml"])
def test_the_standard_project_files_exist(name):
    assert (ROOT / name).read_text(encoding="utf-8").strip()


def test_the_documentation_builds_without_warnings(tmp_path):
    for name in ("sphinx", "numpydoc", "sphinx_gallery", "pydata_sphinx_theme", "matplotlib"):
        pytest.importorskip(name)
    generated = shutil.ignore_patterns("_build", "_generated", "auto_examples", "api", "gen_modules", "__pycache__")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=generated)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=generated)
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "html"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    example = (tmp_path / "html" / "auto_examples" / "plot_first_detector.html").read_text(encoding="utf-8")
    assert "pixel_pro" in example
    assert list((tmp_path / "html" / "_images").glob("sphx_glr_plot_first_detector_001*"))
    method = (tmp_path / "html" / "method.html").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r'class="eqno">\((\d+)\)', method)]
    assert numbers == list(range(1, 13))  # as in the paper
    assert method.count("<math ") > 100
    pages = [page.read_text(encoding="utf-8") for page in (tmp_path / "html").rglob("*.html")]
    assert [
        src for page in pages for src in re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(//|http[^"]*)', page)
    ] == []
    lesson = (tmp_path / "html" / "tutorial" / "running_check.html").read_text(encoding="utf-8")
    assert "readiness card" in lesson
    assert "12 images" in lesson


def test_every_example_has_a_place_in_the_gallery(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    order = import_module("gallery_order")._ORDER
    assert sorted(order) == sorted(path.name for path in (ROOT / "examples").glob("plot_*.py"))
