"""LoRA on a shared, frozen language model (Hu et al. 2022), through peft."""

import copy
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from p2rec_core.errors import ModelError

_QUERY_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
)
"""Names of the query and value projections in families of models, in the order of looking for them."""


def with_lora(model: Any, *, rank: int, alpha: float, dropout: float, targets: Sequence[str] | None, seed: int) -> Any:
    """A peft model over the weights of ``model``, which stays as it is and shares its tensors.

    Args:
        model: The language model's backbone.
        rank: Rank of the adapters.
        alpha: The adapters' output is scaled by alpha / rank.
        dropout: Dropout on the adapters' input while training.
        targets: Names of the linear layers to adapt, as the last part of their dotted name; None means the
            query and value projections of the attention (the fused projection where a family has but one).
        seed: Seed of the adapters' initial values.

    Returns:
        A ``PeftModel`` whose only trainable parameters are the adapters'.

    Raises:
        ModelError: A target is not the name of any linear layer, or there is no known name to adapt.
    """
    names = lora_targets(model, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names), bias="none")
    config.fan_in_fan_out = any(
        name.rpartition(".")[2] in names and type(module).__name__ == "Conv1D" for name, module in model.named_modules()
    )
    shared = _copy_sharing_tensors(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft still asks transformers 5 for the old name of a property
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(shared, config)


def lora_targets(model: nn.Module, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the layers that LoRA adapts.

    Args:
        model: The language model's backbone.
        targets: Names that are asked for, or None for the query and value projections.

    Raises:
        ModelError: A target is not the name of any linear layer, or there is no known name to adapt.
    """
    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
    if targets is None:
        for family in _QUERY_VALUE:
            if all(name in linear for name in family):
                return family
        problem = "The language model has no query and value projections of a known name"
    else:
        unknown = [name for name in targets if name not in linear]
        if targets and not unknown:
            return tuple(targets)
        problem = f"LoRA targets {unknown or list(targets)} match no linear layer of the language model"
    raise ModelError(
        f"{problem}; its linear layers are {', '.join(linear)}.",
        remedy="Name some of these in lora_targets.",
    )


def _is_linear(module: nn.Module) -> bool:
    """Whether it is ``nn.Linear``, a quantised subclass or GPT-2's ``Conv1D``: what peft adapts."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


__all__ = ["lora_targets", "with_lora"]
