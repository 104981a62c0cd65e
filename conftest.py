"""What every test and doctest shares: a seed of its own, the number of threads, and how hypothesis searches."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from zlib import crc32

import hypothesis
import numpy as np
import pytest
import torch

collect_ignore_glob = ["*conftest.py"]  # they have no doctests, and pytest takes equal names for one module

os.environ["MPLBACKEND"] = "Agg"  # before matplotlib is imported: no test opens a window

# The examples of a test are the same in every run: a gate that fails once in a hundred runs says nothing about the
# change it guards. `--hypothesis-profile explore` searches for new ones.
hypothesis.settings.register_profile("gate", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, derandomize=False, max_examples=500)
hypothesis.settings.load_profile("gate")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that vary what no test may depend on."""
    group = parser.getgroup("skpbas")
    group.addoption("--torch-threads", type=int, default=1, help="threads of torch (default: 1)")
    group.addoption("--seed-offset", type=int, default=0, help="added to the seed of every test (default: 0)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the threads; on the small images of the tests more than one mostly wait for each other."""
    torch.set_num_threads(config.getoption("--torch-threads"))
    if hasattr(config.option, "mpl"):
        config.option.mpl = True  # pytest-mpl compares pictures on request only, and "--mpl" fails where it is missing


@pytest.fixture(autouse=True)
def _seed_of_its_own(request: pytest.FixtureRequest) -> None:
    """Seed the global streams by the test's name, so that its draws depend on no other test and no order."""
    seed = (crc32(request.node.nodeid.encode()) + request.config.getoption("--seed-offset")) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - scikit-learn's own checks draw from it
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _no_figure_left() -> Iterator[None]:
    """Close the figures of a test; after twenty open ones matplotlib warns, and warnings are errors."""
    yield
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")
