"""Modules given as ``backbone`` share entries of ``memory`` only if they compute the same."""

import copy
import functools
import threading
import types
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx import symbolic_trace

from skpbas import PBASDetector
from skpbas._features.cache import network_digest
from skpbas._features.module_keys import code_key
from skpbas.core.backbones.levels import HookedModule


@dataclass
class Settings:
    scale: float = 1.0


class Net(nn.Module):
    """The same weights whatever the attributes."""

    def __init__(self, **attributes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 8, 2, 2)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        x = self.first(x)
        if hasattr(self, "scale"):
            x = x * self.scale
        if hasattr(self, "act"):
            x = self.act(x)
        return self.second(x)


def key(module):
    return network_digest(HookedModule(module, ["first", "second"]))


def with_buffer(value):
    net = Net()
    net.register_buffer("offset", torch.full((3,), value), persistent=False)
    return net


def with_hook(hook):
    net = Net()
    net.first.register_forward_hook(hook)
    return net


def with_forward(expression, **names):
    """Return a module of a class of the same name, as a class that was edited between two runs."""
    namespace = {"nn": nn, "F": F, "Net": Net, **names}
    exec(f"class Edited(Net):\n    def forward(self, x):\n        return self.second({expression})\n", namespace)
    return namespace["Edited"]()


def scaled(factor):
    return lambda x: x * factor


def posing(factor):
    return functools.wraps(F.relu)(lambda x: x * factor)


DIFFERENT = {
    "number": (Net(scale=1.0), Net(scale=2.0)),
    "string": (Net(mode="a"), Net(mode="b")),
    "number in a dict": (Net(config={"scale": [1, 2]}), Net(config={"scale": [1, 3]})),
    "dataclass": (Net(config=Settings(1.0)), Net(config=Settings(2.0))),
    "tensor": (Net(shift=torch.ones(3)), Net(shift=torch.zeros(3))),
    "array": (Net(shift=np.ones(3)), Net(shift=np.zeros(3))),
    "buffer that is not persistent": (with_buffer(1.0), with_buffer(2.0)),
    "function of torch": (Net(act=F.relu), Net(act=F.selu)),
    "built-in function": (Net(act=torch.relu), Net(act=torch.tanh)),
    "partial": (Net(act=functools.partial(F.elu, alpha=1.0)), Net(act=functools.partial(F.elu, alpha=2.0))),
    "lambda": (Net(act=lambda x: x + 1), Net(act=lambda x: x + 2)),
    "closure": (Net(act=scaled(1)), Net(act=scaled(2))),
    "module in a list": (Net(act=F.relu, more=[nn.Dropout(0.1)]), Net(act=F.relu, more=[nn.Dropout(0.2)])),
    "attribute of a submodule": (Net(act=Net(scale=1.0)), Net(act=Net(scale=2.0))),
    "class of a submodule": (Net(act=nn.ReLU()), Net(act=nn.Sigmoid())),
    "forward": (with_forward("self.first(x).relu()"), with_forward("self.first(x).abs()")),
    "constant in forward": (with_forward("self.first(x) * 2"), with_forward("self.first(x) * 3")),
    "global constant": (with_forward("self.first(x) * C", C=2), with_forward("self.first(x) * C", C=3)),
    "global function": (with_forward("f(self.first(x))", f=scaled(2)), with_forward("f(self.first(x))", f=scaled(3))),
    "namespace": (Net(config=SimpleNamespace(scale=1)), Net(config=SimpleNamespace(scale=2))),
    "value of an enum": (Net(mode=Enum("Mode", {"A": 1}).A), Net(mode=Enum("Mode", {"A": 2}).A)),
    "function that poses as torch's": (Net(act=posing(1)), Net(act=posing(2))),
    "hook": (with_hook(lambda m, i, o: o * 2), with_hook(lambda m, i, o: o * 3)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_modules_that_compute_differently_have_different_keys(what):
    first, second = DIFFERENT[what]
    assert key(first) != key(second)


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_copy_has_the_key_of_its_original(what):
    for module in DIFFERENT[what]:
        assert key(copy.deepcopy(module)) == key(module)


def test_traced_graphs_differ_by_their_code():
    graphs = [symbolic_trace(with_forward(f"self.first(x) * {factor}")) for factor in (2, 2, 3)]
    assert code_key(graphs[0]) == code_key(graphs[1]) != code_key(graphs[2])


def test_functions_that_a_traced_graph_calls_and_its_hooks_count():
    keys = set()
    for factor in (2, 3):
        net = Net()
        graph = symbolic_trace(net)
        node = next(node for node in graph.graph.nodes if node.op == "output")
        with graph.graph.inserting_before(node):
            called = graph.graph.call_function(scaled(factor), (node.args[0],))
        node.args = (called,)
        graph.recompile()
        keys.add(code_key(graph))
        graph.register_forward_hook(lambda m, i, o: o * 2)
        keys.add(code_key(graph))
    assert len(keys) == 4


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t", "efficientnet_b0"])
def test_networks_of_torchvision_have_keys(name):
    with torch.device("meta"):
        networks = [torchvision.models.get_model(name, weights=None) for _ in range(2)]
    assert code_key(networks[0]) == code_key(networks[1])


def user_code():
    module = types.ModuleType("skpbas_user_code")
    module.f = scaled(2)
    return module


class WithMethod(Net):
    def forward(self, x):
        return self.second(self.helper(x))

    def helper(self, x):
        return super().forward(x)


def test_a_method_that_forward_calls_counts(monkeypatch):
    before = code_key(WithMethod())
    monkeypatch.setattr(WithMethod, "helper", lambda self, x: self.first(x) * 2)
    assert code_key(WithMethod()) != before


UNKNOWN = {
    "attribute 'scale' holds a .*Scale": lambda: Net(scale=type("Scale", (float,), {})(3.0)),
    "the module skpbas_user_code, .* the global 'ops' of": lambda: with_forward("ops.f(x)", ops=user_code()),
    "attribute 'lock' holds a _thread.lock": lambda: Net(lock=threading.Lock()),
    "attribute 'generator' holds a torch._C.Generator": lambda: Net(generator=torch.Generator()),
    "attribute 'values' holds a builtins.generator": lambda: Net(values=(i for i in range(3))),
    "TracedModule: its attribute .* holds a torch": lambda: torch.jit.trace(Net(), torch.zeros(1, 3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")
@pytest.mark.parametrize("said", UNKNOWN)
def test_what_cannot_be_named_is_refused_with_the_way_out(said):
    module = UNKNOWN[said]()
    with pytest.raises(ValueError, match=rf"{said}.*memory_key of the backbone, a str that you change.*memory=None"):
        code_key(module)
    module.memory_key = "net 1"
    first = code_key(module)
    module.memory_key = "net 2"
    assert code_key(module) != first


@pytest.mark.parametrize("wrong", ["", 3])
def test_a_memory_key_is_a_str(wrong):
    with pytest.raises(ValueError, match=r"memory_key=.*must be a str that is not empty"):
        code_key(Net(memory_key=wrong))


class Shifted(Net):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return self.second((self.first(x) + self.shift).relu())


def test_two_modules_that_differ_in_an_attribute_share_a_folder_and_no_entries(good_images, tmp_path):
    def detector(shift, memory):
        settings = {"image_size": 64, "hidden_dim": 8, "max_epochs": 1, "precision": "float32", "device": "cpu"}
        return PBASDetector(Shifted(shift), layers=["first", "second"], memory=memory, random_state=0, **settings)

    scores = {}
    for shift in (0.0, 2.0):
        alone = detector(shift, None).fit(good_images).score_samples(good_images)
        scores[shift] = detector(shift, tmp_path).fit(good_images).score_samples(good_images)
        np.testing.assert_allclose(scores[shift], alone, rtol=1e-4)
    assert np.abs(scores[0.0] - scores[2.0]).max() > 1e-3


def test_a_method_that_replaces_forward_of_one_instance_counts():
    first, second = Net(), Net()
    second.forward = types.MethodType(lambda self, x: self.second(self.first(x) * 2), second)
    assert key(first) != code_key(second)
    assert code_key(first) != code_key(second)
