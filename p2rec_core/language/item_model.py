"""A language model that reads items: instruction, projected item vectors and response, to one vector per sequence.

P2Rec and E4SRec are this model with different heads, losses, examples and prompts.

Axes: B sequences, L items, d backbone width, P instruction tokens, R response tokens, E language model width.

Design choices:
- A sequence is laid out without gaps, ``[instruction; items; response]``, and padded on the right only.
  Positions therefore count from zero with the family's own rule, and a causal model needs no attention mask
  at all.
- The instruction is the same for every sequence. A causal model computes its keys and values once for the
  whole batch (shared prefix); gradients flow through them. That is a pass of its own, which a GPU's small batch
  does without. In an encoder the instruction attends to the items, so nothing can be shared and every sequence goes
  through the model whole.
- On a CPU an encoder's sequences go through it end to end instead of padded (``packing``).
- Item embeddings are standardised once and projected to the scale of the prompt's token embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from p2rec_core.errors import ModelError
from p2rec_core.language.batching import pass_tokens
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.lora import with_lora
from p2rec_core.language.packing import PACKABLE, PACKED_ATTENTION, Packing, read_last_tokens
from p2rec_core.language.prompt import Prompt
from p2rec_core.seeds import Initial, initial_seed

Prefix = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values of the instruction, each (1, heads, P, width of a head)."""


class ItemLanguageModel(nn.Module):
    """Instruction, projected items and response through a language model to h, and a linear head on it.

    Only LoRA's matrices, the projector and the head are trained. The weights of ``language_model`` are
    shared, not copied, and never changed: several of these models may stand on one language model.

    Args:
        language_model: The frozen language model.
        prompt: The text around the items.
        item_embeddings: Backbone embeddings e_v, float32 (N, d), row i of item_idx i + 1.
        trained: Which items have training interactions, bool (N,). The others' rows carry no information;
            they are replaced by the trained items' mean.
        n_outputs: Outputs of the head.
        head_bias: Whether the head has a bias.
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_dropout: Dropout on the adapters' input while training.
        lora_targets: Names of the linear layers to adapt; None means those of ``lora_part``.
        lora_part: ``attention`` (query and value projections) or ``mlp`` (the feed-forward networks).
        pooling: ``last``: h is the state of the last response token (which is ``[SEP]`` for an encoder);
            ``mean``: h is the mean of the states of the items and the response.
        shared_prefix: Whether a causal model computes the instruction once per batch instead of once per
            sequence. Same results to rounding. An encoder cannot and ignores it; gradient checkpointing,
            which throws keys and values away, turns it off while training.
        packed: Whether an encoder of a type that allows it reads its sequences end to end on a CPU. Same results to
            rounding.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        seed: Seed of the initial values.

    Raises:
        ModelError: Item embeddings are not finite, do not fit ``trained``, or no item is trained; or LoRA's
            targets match no layer.

    Source: Liu et al. 2024, Eq. 2. Deviation: e_v is standardised and its projection scaled, since backbone
    and token embeddings differ in scale by orders of magnitude; ``mean`` pooling is ours.
    """

    least_items: ClassVar[int] = 1
    """Items that a sequence has at the least."""

    table: Tensor
    instruction: Tensor
    response: Tensor

    def __init__(
        self,
        language_model: LanguageModel,
        prompt: Prompt,
        item_embeddings: NDArray[np.float32],
        trained: NDArray[np.bool_],
        n_outputs: int,
        *,
        head_bias: bool = True,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        lora_targets: Sequence[str] | None = None,
        lora_part: str = "attention",
        pooling: str = "last",
        shared_prefix: bool = True,
        packed: bool = True,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in ("last", "mean"):
            raise ModelError(f"There is no pooling {pooling!r}.", remedy="Use 'last' or 'mean'.")
        table = _standardised(item_embeddings, trained)
        self.causal, self.pooling = language_model.causal, pooling
        self.hidden_size, self.n_positions = language_model.hidden_size, language_model.n_positions
        self.shared_prefix, self.gradient_checkpointing = shared_prefix, gradient_checkpointing
        self.n_items = len(trained)
        self.n_untrained = int((~trained).sum())
        embed = language_model.model.get_input_embeddings()
        device, self.dtype = embed.weight.device, language_model.model.dtype
        with torch.no_grad():
            for name, ids in (("instruction", prompt.instruction), ("response", prompt.response)):
                vectors = embed(torch.from_numpy(ids).to(device)).clone()
                self.register_buffer(name, vectors, persistent=False)
        self.register_buffer("table", table.to(device), persistent=False)
        width = self.response.shape[-1]
        self.item_scale = float(torch.cat([self.instruction, self.response]).float().square().mean().sqrt())
        self.lm = with_lora(
            language_model.model,
            rank=lora_rank,
            alpha=lora_alpha,
            dropout=lora_dropout,
            targets=lora_targets,
            part=lora_part,
            seed=seed,
        )
        self.packs = packed and device.type == "cpu" and self.backbone.config.model_type in PACKABLE and not self.causal
        if self.packs:
            self.backbone.set_attn_implementation(PACKED_ATTENTION)
            read_last_tokens(self.backbone)
        if gradient_checkpointing:
            # transformers 5 renames it and warns of the old name
            new_name = getattr(self.backbone, "activation_checkpointing_enable", None)
            (new_name or self.backbone.gradient_checkpointing_enable)({"use_reentrant": False})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(initial_seed(seed, Initial.HEAD))
            self.linear_proj = nn.Linear(table.shape[1], width)
            self.head = nn.Linear(self.hidden_size, n_outputs, bias=head_bias)
            _scale_to_unit_output(self.linear_proj, table[1:][torch.from_numpy(trained)])
        self.linear_proj.to(device)
        self.head.to(device)

    @property
    def backbone(self) -> Any:
        """The transformer with LoRA's layers inside, without peft's wrapper."""
        return self.lm.get_base_model()

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens that every sequence has beside its items."""
        return len(self.instruction) + len(self.response)

    @property
    def shares_prefix(self) -> bool:
        """Whether the instruction is computed once per batch in the mode that the model is in."""
        wanted = self.causal and self.shared_prefix and len(self.instruction) > 0
        return wanted and not (self.gradient_checkpointing and self.training)

    def check_length(self, n_items: int, *, setting: str = "max_length") -> None:
        """Make sure that the language model has positions for so many items.

        Args:
            n_items: Items of the longest sequence.
            setting: Name of the setting that bounds them.

        Raises:
            ModelError: It has not.
        """
        bound = self.n_positions
        if bound is not None and n_items + self.n_prompt_tokens > bound:
            raise ModelError(
                f"{n_items} items and a prompt of {self.n_prompt_tokens} tokens exceed the {bound}"
                " positions of the language model.",
                remedy=f"Lower {setting} to {bound - self.n_prompt_tokens}, or shorten the prompt.",
            )

    def read(self, items: Tensor, lengths: Tensor, *, prefix: Prefix | None = None) -> Tensor:
        """Read sequences.

        Args:
            items: item_idx, int64 (B, L), padded with 0 on either side.
            lengths: Number of items of each sequence, int64 (B,), at least ``least_items``.
            prefix: What ``encode_prefix`` returned, to use it for several batches; None computes it if it is
                to be shared.

        Returns:
            h, float32 (B, E).

        Raises:
            ModelError: ``lengths`` is not the number of items in ``items``, or a sequence has too few.
        """
        body, last = self._body(items, lengths)  # (B, T, E'), (B,)
        if self.packs:
            return self._packed(body, last)
        if prefix is None and self.shares_prefix and self._prefix_pays(len(body)):
            prefix = self.encode_prefix()
        states = self._whole(body, last) if prefix is None else self._after_prefix(body, prefix)
        return self._pool(states, last)

    def encode_prefix(self) -> Prefix:
        """The instruction's keys and values in every layer; a causal model's only.

        Raises:
            ModelError: The model is an encoder, or keeps something else than keys and values.
        """
        if not self.causal:
            raise ModelError(
                "An encoder's instruction attends to the items, so that it cannot be computed once for all.",
                remedy="Use shared_prefix=False with encoders.",
            )
        cache = DynamicCache()
        self.backbone(inputs_embeds=self.instruction[None], past_key_values=cache, use_cache=True)
        layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        if len(layers) != self.backbone.config.num_hidden_layers:
            raise ModelError(
                f"The language model ({self.backbone.config.model_type}) does not keep keys and values.",
                remedy="Use shared_prefix=False with it.",
            )
        return [(layer.keys, layer.values) for layer in layers]

    def trainable_tensors(self) -> dict[str, Tensor]:
        """LoRA's matrices, the projector and the head by name, detached but not copied."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_trainable(self, tensors: Mapping[str, Tensor | NDArray[np.float32]]) -> None:
        """Put saved values into the trainable parameters.

        Args:
            tensors: A value for every name of ``trainable_tensors``.

        Raises:
            ModelError: A name or a shape differs.
        """
        own = self.trainable_tensors()
        if own.keys() != tensors.keys():
            raise ModelError(
                "The tensors are not this model's, these names being on one side only:"
                f" {', '.join(sorted(own.keys() ^ tensors.keys()))}.",
                remedy="Build the model with the language model and LoRA settings of the tensors.",
            )
        for name, parameter in own.items():
            value = torch.as_tensor(tensors[name])
            if value.shape != parameter.shape:
                raise ModelError(
                    f"The tensor {name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}.",
                    remedy="Build the model with the settings and item embeddings of the tensors.",
                )
            parameter.copy_(value)

    def _body(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of items and response, right-padded (B, L + R, E'), and each row's last token (B,)."""
        present = items != 0
        if not bool(((present.sum(1) == lengths) & (lengths >= self.least_items)).all()):
            raise ModelError(
                "The lengths are not the numbers of items in the sequences, or a sequence is empty.",
                remedy=f"Give every sequence its number of items, at least {self.least_items}.",
            )
        longest, n_response = int(lengths.max()), len(self.response)
        order = torch.argsort(~present, dim=1, stable=True)[:, :longest]
        items = functional.pad(items.gather(1, order), (0, n_response))  # now right-padded (B, longest + R)
        projected = (self.linear_proj(self.table[items]) * self.item_scale).to(self.dtype)
        after = torch.arange(longest + n_response, device=items.device)[None] - lengths[:, None]
        response = self.response[after.clamp(0, n_response - 1)]
        return torch.where((after < 0)[..., None], projected, response), lengths + (n_response - 1)

    def _prefix_pays(self, n_sequences: int) -> bool:
        """Whether a pass of its own for the instruction saves more tokens than it costs."""
        device = self.instruction.device
        return device.type == "cpu" or (n_sequences - 1) * len(self.instruction) > pass_tokens(device)

    def _with_instruction(self, body: Tensor) -> Tensor:
        return torch.cat([self.instruction.expand(len(body), -1, -1), body], dim=1)

    def _packed(self, body: Tensor, last: Tensor) -> Tensor:
        """h of sequences that go through the encoder end to end, float32 (B, E)."""
        n_read = torch.ones_like(last) if self.pooling == "last" else last + 1
        packing = Packing(last + (len(self.instruction) + 1), n_read)
        # RoBERTa's positions begin after the padding index
        offset = getattr(self.backbone.embeddings.position_embeddings, "padding_idx", None)
        positions = packing.positions[None] + (0 if offset is None else offset + 1)
        inputs = packing.pack(self._with_instruction(body))
        read = self.backbone(inputs_embeds=inputs, position_ids=positions, packing=packing).last_hidden_state
        return packing.mean(read)

    def _whole(self, body: Tensor, last: Tensor) -> Tensor:
        """States of items and response with the instruction computed in every sequence, (B, T, E)."""
        n_prefix = len(self.instruction)
        inputs = self._with_instruction(body)
        mask = None
        if not self.causal and not bool((last == body.shape[1] - 1).all()):
            mask = torch.arange(inputs.shape[1], device=body.device)[None] <= (last + n_prefix)[:, None]
        states: Tensor = self.backbone(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        return states[:, n_prefix:]

    def _after_prefix(self, body: Tensor, prefix: Prefix) -> Tensor:
        """States of items and response, (B, T, E), attending to an instruction that is computed already."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(prefix):
            cache.update(keys.expand(len(body), -1, -1, -1), values.expand(len(body), -1, -1, -1), layer)
        out = self.backbone(inputs_embeds=body, past_key_values=cache, use_cache=True)
        states: Tensor = out.last_hidden_state
        return states

    def _pool(self, states: Tensor, last: Tensor) -> Tensor:
        if self.pooling == "last":
            return states[torch.arange(len(states), device=states.device), last].float()
        mask = torch.arange(states.shape[1], device=states.device)[None] <= last[:, None]
        return (states.float() * mask[..., None]).sum(1) / (last + 1)[:, None]


def _standardised(item_embeddings: NDArray[np.float32], trained: NDArray[np.bool_]) -> Tensor:
    """The item table, float32 (N + 1, d): standardised over trained items, zero for PAD and the untrained."""
    if item_embeddings.ndim != 2 or trained.shape != item_embeddings.shape[:1] or not trained.any():
        raise ModelError(
            f"Item embeddings of shape {item_embeddings.shape} do not fit {int(trained.sum())} trained"
            f" items out of {len(trained)}.",
            remedy="Give one row per item, and at least one item with training interactions.",
        )
    n_bad = int((~np.isfinite(item_embeddings)).any(axis=1).sum())
    if n_bad:
        raise ModelError(
            f"{n_bad} of {len(item_embeddings)} rows of the item embeddings are not finite.",
            remedy="Train the backbone again; its training has diverged.",
        )
    rows = item_embeddings[trained].astype(np.float64)
    deviation = rows.std(axis=0)
    constant = deviation <= 1e-7 * np.abs(rows).max(axis=0)
    scaled = (item_embeddings - rows.mean(axis=0)) / np.where(constant, 1.0, deviation)
    scaled[:, constant] = 0.0
    scaled[~trained] = 0.0
    table = np.concatenate([np.zeros((1, scaled.shape[1])), scaled]).astype(np.float32)
    return torch.from_numpy(table)


@torch.no_grad()
def _scale_to_unit_output(layer: nn.Linear, inputs: Tensor) -> None:
    """Draw weights such that the layer's outputs have root mean square one on ``inputs``, and a zero bias."""
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.zeros_(layer.bias)
    rms = functional.linear(inputs, layer.weight).square().mean().sqrt()
    if rms > 0:
        layer.weight.div_(rms)


__all__ = ["ItemLanguageModel", "Prefix"]
