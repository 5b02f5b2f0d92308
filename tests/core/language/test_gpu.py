"""On a GPU the language model is tuned and read as on the processor, and memory that runs out changes nothing."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from p2rec_core.language.finetune import FinetuneResult, finetune
from p2rec_core.language.knowledge import build_model, item_knowledge
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.prompt import Prompt


@pytest.fixture
def on_gpu(language_model: LanguageModel, gpu: torch.device) -> LanguageModel:
    return replace(language_model, model=copy.deepcopy(language_model.model).to(gpu))


@pytest.fixture
def little_memory(gpu: torch.device) -> Iterator[None]:
    """64 MiB more than is taken now."""
    torch.cuda.empty_cache()
    number = torch.cuda.current_device()
    _, total = torch.cuda.mem_get_info(number)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(number) + (64 << 20)) / total, number)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, number)


def errors(result: FinetuneResult) -> list[float]:
    return [value for _, name, value in result.history if name in {"train_error", "held_out_error"}]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_tuning_and_knowledge_agree_with_those_on_the_processor(
    language_model: LanguageModel,
    on_gpu: LanguageModel,
    prompt: Prompt,
    users: Callable[..., Any],
    settings: dict[str, Any],
    gpu: torch.device,
    pooling: str,
    gradient_checkpointing: bool,
) -> None:
    data = users(200)
    how = settings | {"epochs": 2, "lora_dropout": 0.0, "pooling": pooling}
    there = finetune(
        on_gpu, prompt, *data.arrays, **how | {"gradient_checkpointing": gradient_checkpointing}, device=gpu
    )
    here = finetune(language_model, prompt, *data.arrays, **how)
    np.testing.assert_allclose(errors(there), errors(here), rtol=1e-2)
    rebuilt = {"lora_rank": 4, "lora_alpha": 8.0, "pooling": pooling, "tensors": here.tensors}
    near, own = (
        item_knowledge(build_model(model, prompt, *data.arrays[:2], 4, **rebuilt)) for model in (on_gpu, language_model)
    )
    np.testing.assert_allclose(near.knowledge, own.knowledge, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(near.category_distribution, own.category_distribution, atol=1e-3)


def test_an_instruction_that_a_large_batch_computes_once_has_the_same_effect(
    tiny: Callable[[str], LanguageModel],
    prompt: Prompt,
    users: Callable[..., Any],
    settings: dict[str, Any],
    gpu: torch.device,
) -> None:
    data = users(4000)
    how = settings | {"batch_users": 2000, "lora_dropout": 0.0, "micro_batch_tokens": 1 << 16}
    model = tiny("llama")
    here = finetune(model, prompt, *data.arrays, **how)
    there = finetune(replace(model, model=copy.deepcopy(model.model).to(gpu)), prompt, *data.arrays, **how, device=gpu)
    np.testing.assert_allclose(errors(there), errors(here), rtol=1e-2)


def test_bfloat16_there_is_near(
    on_gpu: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any], gpu: torch.device
) -> None:
    data = users(200)
    exact = finetune(on_gpu, prompt, *data.arrays, **settings, device=gpu)
    narrow = replace(on_gpu, model=copy.deepcopy(on_gpu.model).to(torch.bfloat16))
    rounded = finetune(narrow, prompt, *data.arrays, **settings, device=gpu, autocast=torch.bfloat16)
    np.testing.assert_allclose(errors(rounded), errors(exact), rtol=0.1)


@pytest.mark.usefixtures("little_memory")
def test_memory_that_runs_out_halves_the_micro_batch_to_the_same_effect(
    on_gpu: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any], gpu: torch.device
) -> None:
    data = users(8192)
    how = settings | {"batch_users": 4096, "lora_dropout": 0.0}
    small = finetune(on_gpu, prompt, *data.arrays, **how | {"micro_batch_tokens": 1024}, device=gpu)
    assert not small.notes
    halved = finetune(on_gpu, prompt, *data.arrays, **how | {"micro_batch_tokens": 1 << 17}, device=gpu)
    assert halved.notes
    assert "ran out of memory" in halved.notes[0]
    np.testing.assert_allclose(errors(halved), errors(small), rtol=1e-2)
