"""A device without enough memory: less at once, to the same effect."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from p2rec_core.errors import ModelError
from p2rec_core.language.finetune import finetune
from p2rec_core.language.item_model import ItemLanguageModel
from p2rec_core.language.knowledge import build_model, item_knowledge
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.memory import halving
from p2rec_core.language.prompt import Prompt
from p2rec_core.training.checkpoint import Checkpointer


class Memory:
    """A device that holds so many rows of a batch.

    Attributes:
        rows: Rows that fit.
        fits_first: Batches that fit before it shrinks to that, as where another process takes memory away.
        met: Rows of every batch that was read.
    """

    def __init__(self) -> None:
        self.rows, self.fits_first = 1 << 30, 0
        self.met: list[int] = []


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    device, read = Memory(), ItemLanguageModel.read

    def limited(self: ItemLanguageModel, items: torch.Tensor, lengths: torch.Tensor, **values: Any) -> torch.Tensor:
        device.met.append(len(items))
        if len(items) > device.rows and len(device.met) > device.fits_first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return read(self, items, lengths, **values)

    monkeypatch.setattr(ItemLanguageModel, "read", limited)
    return device


def test_fine_tuning_goes_on_with_smaller_micro_batches(
    memory: Memory,
    language_model: LanguageModel,
    prompt: Prompt,
    users: Callable[..., Any],
    settings: dict[str, Any],
    tmp_path: Any,
) -> None:
    data = users(60)
    settings |= {"epochs": 2, "batch_users": 20, "micro_batch_tokens": 2048, "lora_dropout": 0.0}
    expected = finetune(language_model, prompt, *data.arrays, **settings)
    assert expected.notes == ()

    memory.rows = 6
    found = finetune(language_model, prompt, *data.arrays, **settings)
    assert found.notes[0] == (
        "the device ran out of memory with 2,048 tokens at once (micro_batch_tokens); went on with 1,024, "
        "to the same effect"
    )
    assert found.n_steps == expected.n_steps
    for name, tensor in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)

    # memory that is taken away in the middle costs no step that a checkpoint holds
    memory.met, memory.fits_first = [], 4
    checkpointer = Checkpointer(tmp_path, every_s=0)
    resumed = finetune(language_model, prompt, *data.arrays, **settings, checkpointer=checkpointer)
    assert resumed.resumed_at_step is not None
    assert resumed.n_steps == expected.n_steps


def test_an_item_at_a_time_if_need_be(memory: Memory, language_model: LanguageModel, prompt: Prompt) -> None:
    embeddings = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    lora = {"lora_rank": 4, "lora_alpha": 8.0, "pooling": "mean", "tensors": None}
    model = build_model(language_model, prompt, embeddings, np.ones(10, bool), 4, **lora)
    expected = item_knowledge(model, batch_size=8)
    memory.rows, memory.met = 3, []
    found = item_knowledge(model, batch_size=8)
    assert memory.met == [8, 4, 2, 2, 2, 2, 2]
    assert len(found.notes) == 2
    assert found.notes[0].startswith("the device ran out of memory with 8 items at once; went on with 4")
    np.testing.assert_allclose(found.knowledge, expected.knowledge, atol=1e-5)

    memory.rows = 0
    with pytest.raises(ModelError, match="too little memory for 1 items at once, and less is not possible") as caught:
        item_knowledge(model, batch_size=8)
    assert "quantise" in caught.value.remedy


def test_other_errors_pass() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        halving(broken, 8, least=1, what="items", told=pytest.fail)
