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
from p2rec_core.seeds import Initial, initial_seed

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

_FEED_FORWARD = (
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("intermediate.dense", "output.dense"),
    ("mlp.Wi", "mlp.Wo"),
    ("ffn.lin1", "ffn.lin2"),
    ("mlp.c_fc", "mlp.c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc1", "fc2"),
)
"""Ends of the dotted names of the feed-forward projections, likewise."""


def with_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str] | None,
    seed: int,
    part: str = "attention",
) -> Any:
    """A peft model over the weights of ``model``, which stays as it is and shares its tensors.

    Args:
        model: The language model's backbone.
        rank: Rank of the adapters.
        alpha: The adapters' output is scaled by alpha / rank.
        dropout: Dropout on the adapters' input while training.
        targets: Names of the linear layers to adapt, as the end of their dotted name; None means those of
            ``part``.
        seed: Seed of the adapters' initial values.
        part: ``attention``: query and value projections (the fused one where a family has but one); ``mlp``: all
            projections of the feed-forward networks.

    Returns:
        A ``PeftModel`` whose only trainable parameters are the adapters'.

    Raises:
        ModelError: A target is not the name of any linear layer, or there is no known name to adapt.
    """
    names = lora_targets(model, targets, part)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names), bias="none")
    config.fan_in_fan_out = any(
        type(module).__name__ == "Conv1D" and any(_ends(name, target) for target in names)
        for name, module in model.named_modules()
    )
    shared = _copy_sharing_tensors(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft still asks transformers 5 for the old name of a property
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(initial_seed(seed, Initial.ADAPTERS))
        return get_peft_model(shared, config)


def lora_targets(model: nn.Module, targets: Sequence[str] | None, part: str = "attention") -> tuple[str, ...]:
    """The names of the layers that LoRA adapts.

    Args:
        model: The language model's backbone.
        targets: Names that are asked for, or None for those of ``part``.
        part: ``attention`` or ``mlp``.

    Returns:
        Last parts of the layers' dotted names, or their whole dotted names for ``mlp``.

    Raises:
        ModelError: A target is not the name of any linear layer, or there is no known name to adapt.
    """
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    last_parts = sorted({name.rpartition(".")[2] for name in linear})
    if targets is None and part == "attention":
        for family in _QUERY_VALUE:
            if all(name in last_parts for name in family):
                return family
        problem = "The language model has no query and value projections of a known name"
    elif targets is None:
        # an attention's output.dense ends like the feed-forward network's
        outside = [name for name in linear if ".attention." not in name]
        for ends in _FEED_FORWARD:
            found = [tuple(name for name in outside if _ends(name, end)) for end in ends]
            if all(found):
                return tuple(itertools.chain.from_iterable(found))
        problem = "The language model has no feed-forward projections of a known name"
    else:
        unknown = [target for target in targets if not any(_ends(name, target) for name in linear)]
        if targets and not unknown:
            return tuple(targets)
        problem = f"LoRA targets {unknown or list(targets)} match no linear layer of the language model"
    raise ModelError(
        f"{problem}; its linear layers are {', '.join(last_parts)}.",
        remedy="Name some of these in lora_targets.",
    )


def _ends(name: str, target: str) -> bool:
    """Whether a dotted name ends with the parts of ``target``."""
    return name == target or name.endswith(f".{target}")


def _is_linear(module: nn.Module) -> bool:
    """Whether it is ``nn.Linear``, a quantised subclass or GPT-2's ``Conv1D``: what peft adapts."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


__all__ = ["lora_targets", "with_lora"]
