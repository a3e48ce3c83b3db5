"""Linear layers through oneDNN: the same numbers, the same gradients, and everything put back."""

import pytest
import torch
from torch import nn

from glotlift.models import linear
from glotlift.models.linear import fast_linear, product
from tests.conftest import random_model


def _layer(inputs=24, outputs=17, bias=True):
    torch.manual_seed(3)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (0, 24)])
def test_a_layer_gives_what_it_gives_without(shape, bias):
    layer, states = _layer(bias=bias), torch.randn(shape)
    expected = layer(states)
    with fast_linear(layer):
        torch.testing.assert_close(layer(states), expected, atol=1e-5, rtol=1e-5)


def test_states_that_lie_crosswise_are_read_right():
    layer, states = _layer(), torch.randn(24, 5, 2).permute(2, 1, 0)
    expected = layer(states)
    with fast_linear(layer), torch.inference_mode():
        torch.testing.assert_close(layer(states), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_the_plain_layer(frozen):
    layer = _layer()
    layer.requires_grad_(not frozen)
    states = torch.randn(2, 5, 24, requires_grad=True)
    weights = torch.randn(2, 5, 17)

    def gradients():
        layer.zero_grad()
        states.grad = None
        (layer(states) * weights).sum().backward()
        return [states.grad, *(p.grad for p in layer.parameters() if not frozen)]

    expected = gradients()
    with fast_linear(layer):
        found = gradients()
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_layers_are_changed_inside_and_put_back_whatever_happens():
    model = random_model("llama")
    with pytest.raises(ZeroDivisionError), fast_linear(model):
        changed = [module for module in model.modules() if "forward" in vars(module)]
        assert len(changed) == 3 * 7 + 1 or not linear._has_onednn()
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_that_are_not_plain_fp32_stay_as_they_are():
    class Odd(nn.Linear):
        pass

    hooked = _layer()
    hooked.forward = lambda states: states
    model = nn.ModuleList([_layer().double(), Odd(3, 4), hooked])
    with fast_linear(model):
        assert ["forward" in vars(module) for module in model] == [False, False, True]
    assert "forward" in vars(hooked)


def test_without_onednn_nothing_changes(monkeypatch):
    monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    layer, states = _layer(), torch.randn(5, 24)
    with fast_linear(layer):
        assert "forward" not in vars(layer)
    assert torch.equal(product(states, layer.weight, layer.bias), layer(states))


@pytest.mark.parametrize(
    ("capability", "is_intel", "expected"),
    [
        ("AVX512", True, True),
        ("AVX512", False, True),
        ("AVX2", False, True),
        ("AVX2", True, False),
        ("DEFAULT", False, False),
    ],
)
def test_which_library_runs_depends_on_the_cpu_alone(monkeypatch, capability, is_intel, expected):
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear, "_is_intel", lambda: is_intel)
    assert linear._has_onednn() == expected
