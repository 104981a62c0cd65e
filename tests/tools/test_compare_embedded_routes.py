"""A small run of the command that compares two ways to train the embedded backbone."""

import compare_embedded_routes
import numpy as np
import torch
from compare_embedded_routes import N_FORMULAS, formula_picture
from safetensors.torch import load_file

from skpbas.core.backbones import build_backbone
from skpbas.core.backbones.embedded import EmbeddedBackbone


def test_both_routes_write_weights_that_the_package_can_read(tmp_path):
    teacher = build_backbone("resnet18", None, ("layer2", "layer3"), torch.Generator().manual_seed(0))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    options = {"work": tmp_path, "teacher-weights": tmp_path / "teacher.pth", "steps": 3, "batch-size": 4}
    options |= {"pictures": 8, "side": 32, "workers": 1}
    assert compare_embedded_routes.main([t for k, v in options.items() for t in (f"--{k}", str(v))]) == 0
    networks = {}
    for route in ("formula", "distilled"):
        state = load_file(tmp_path / f"{route}.safetensors")
        EmbeddedBackbone().load_state_dict({name: tensor.float() for name, tensor in state.items()})
        networks[route] = state["stem.0.0.weight"]
    assert not torch.equal(networks["formula"], networks["distilled"])


def test_a_picture_and_its_formula_depend_on_seed_and_index_alone():
    first, second = formula_picture(0, 5, 32), formula_picture(0, 5, 32)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[0].shape == (32, 32, 3)
    assert not np.array_equal(first[0], formula_picture(1, 5, 32)[0])


def test_all_kinds_of_formulas_are_drawn():
    formulas = [formula_picture(0, index, 32)[1] for index in range(60)]
    assert min(formulas) >= 0
    assert max(formulas) < N_FORMULAS
    kinds = np.digitize(formulas, [compare_embedded_routes.N_MATERIALS, N_FORMULAS - compare_embedded_routes.N_NOISES])
    assert set(kinds) == {0, 1, 2}
