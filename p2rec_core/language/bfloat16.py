"""Products in bfloat16 between activations in float32, for frozen weights on a CPU.

A processor with avx512_bf16 or AMX multiplies bfloat16 at twice the rate of float32 and more. A language model's work
is nearly all in its linear layers; norms, softmax and activation functions gain nothing from narrow numbers there, and
what autocast changes to and fro around them costs what the products save.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Product(torch.autograd.Function):
    """x W' + b with W frozen, both products in bfloat16 and all else in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        y = functional.linear(x.bfloat16(), weight).float()
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (upstream[0].bfloat16() @ weight).float(), None, None


class Bfloat16Linear(nn.Linear):
    """A frozen linear layer whose weights are bfloat16, from float32 to float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        y: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


@torch.no_grad()
def multiply_in_bfloat16(model: nn.Module) -> None:
    """Have all plain linear layers of a model multiply in bfloat16; everything else becomes float32.

    Args:
        model: Frozen; changed in place.
    """
    for module in model.modules():
        linear = type(module) is nn.Linear
        if linear:
            module.__class__ = Bfloat16Linear
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = parameter.to(torch.bfloat16 if linear and name == "weight" else torch.float32)


__all__ = ["Bfloat16Linear", "multiply_in_bfloat16"]
