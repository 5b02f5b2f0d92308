"""Products in bfloat16 on a CPU: what is narrow, what stays float32, and how far results move."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from p2rec_core.language.bfloat16 import Bfloat16Linear, multiply_in_bfloat16
from p2rec_core.language.finetune import finetune
from p2rec_core.language.loading import LanguageModel, load_language_model
from p2rec_core.language.prompt import Prompt


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradient_are_those_of_rounded_weights(bias: bool) -> None:
    torch.manual_seed(1)
    exact = nn.Linear(48, 32, bias=bias).requires_grad_(False)
    narrow = copy.deepcopy(exact)
    multiply_in_bfloat16(narrow)
    assert type(narrow) is Bfloat16Linear
    x = torch.randn(5, 7, 48)
    outputs, gradients = [], []
    for layer in (exact, narrow):
        read = x.clone().requires_grad_()
        y = layer(read)
        assert y.dtype == torch.float32
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append(read.grad)
    assert relative(outputs[1], outputs[0]) < 0.01
    assert relative(gradients[1], gradients[0]) < 0.01
    assert not torch.equal(outputs[1], outputs[0])


def test_only_linear_layers_weights_are_narrow() -> None:
    model = load_language_model("random-llama-tiny", dtype="bfloat16", seed=1).model
    formats = {type(module).__name__: set() for module in model.modules()}
    for module in model.modules():
        formats[type(module).__name__] |= {p.dtype for p in module.parameters(recurse=False)}
        assert all(buffer.dtype != torch.bfloat16 for buffer in module.buffers(recurse=False))
    assert formats["Bfloat16Linear"] == {torch.bfloat16}
    assert formats["Embedding"] == formats["LlamaRMSNorm"] == {torch.float32}
    assert "Linear" not in formats
    assert model.dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters())


def test_a_pretrained_encoder_says_nearly_the_same() -> None:
    states = []
    for dtype in ("float32", "bfloat16"):
        loaded = load_language_model("all-MiniLM-L6-v2", dtype=dtype)
        ids = torch.tensor([loaded.tokenizer("a red lipstick that lasts")["input_ids"]])
        with torch.no_grad():
            states.append(loaded.model(input_ids=ids).last_hidden_state)
    assert states[1].dtype == torch.float32
    assert 0 < relative(states[1], states[0]) < 0.03


def test_it_learns_as_in_float32_with_adapters_in_float32(
    prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any], language_model: LanguageModel
) -> None:
    data = users(40)
    narrow = copy.deepcopy(language_model)
    multiply_in_bfloat16(narrow.model)
    errors = []
    for chosen in (language_model, narrow):
        result = finetune(chosen, prompt, *data.arrays, **settings | {"epochs": 3})
        assert all(tensor.dtype == "float32" for tensor in result.tensors.values())
        errors.append([value for _, name, value in result.history if name == "train_error"])
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
    assert errors[1][-1] < errors[1][0]
