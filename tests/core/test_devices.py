"""What is chosen by the hardware."""

import pytest
import torch

from skpbas.core.devices import discriminator_precision, has_fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        pytest.param({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True, id="matrix unit"),
        pytest.param({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True, id="AMD"),
        pytest.param({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False, id="hidden unit"),
        pytest.param({"cpu_name": "AMD Ryzen", "avx512_bf16": False, "amx_bf16": False}, False, id="older AMD"),
        pytest.param({"avx512_bf16": True, "amx_bf16": False}, False, id="a torch that does not name the processor"),
        pytest.param({"bf16": True}, False, id="Arm"),
    ],
)
def test_bfloat16_is_chosen_only_where_it_is_known_to_be_faster(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bfloat16(CPU) is fast
    assert discriminator_precision("auto", CPU) is (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize("fast", [False, True])
def test_a_precision_that_is_asked_for_does_not_depend_on_the_hardware(monkeypatch, fast):
    monkeypatch.setattr("skpbas.core.devices.has_fast_bfloat16", lambda device: fast)
    assert discriminator_precision("bfloat16", CPU) is torch.bfloat16
    assert discriminator_precision("float32", CPU) is torch.float32


def test_torch_that_does_not_know_its_processor_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_fast_bfloat16(CPU) is False
