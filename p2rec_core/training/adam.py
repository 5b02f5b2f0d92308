"""Adam with decoupled weight decay: torch's fused kernel, without the compiler that torch's own class loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Attributes:
        parameters: The parameters.
        learning_rate: Step size at its peak.
        weight_decay: Part of a parameter that is taken off it per step, in learning rates.
    """

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class _Moments:
    """What Adam remembers of a parameter: its steps, float32 (), and means of its gradient and the square of it."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Adam:
    """AdamW of Loshchilov and Hutter (2019) with the betas .9 and .999, as ``torch.optim.AdamW(fused=True)``.

    Making one of torch's class imports its compiler: a second of start and 70 MiB that nothing here uses.

    Args:
        groups: What is trained; a parameter is in one of them.
    """

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self.groups = groups
        self._moments: dict[nn.Parameter, _Moments] = {}

    @torch.no_grad()
    def step(self, rate_factor: float) -> None:
        """Move every parameter that has a gradient.

        Args:
            rate_factor: What the groups' learning rates are multiplied by.
        """
        for group in self.groups:
            moved = [(p, p.grad) for p in group.parameters if p.grad is not None]
            moments = [self._moments_of(parameter) for parameter, _ in moved]
            adamw(
                [parameter for parameter, _ in moved],
                [gradient for _, gradient in moved],
                [moment.exp_avg for moment in moments],
                [moment.exp_avg_sq for moment in moments],
                [],
                [moment.step for moment in moments],
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=group.learning_rate * rate_factor,
                weight_decay=group.weight_decay,
                eps=_EPSILON,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def state(self, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """What is remembered of every parameter that has moved.

        Args:
            named: The parameters by name.

        Returns:
            ``"<name>|<field>"`` → tensor, for ``restore``.
        """
        return {
            f"{name}|{field}": value
            for name, parameter in named.items()
            if parameter in self._moments
            for field, value in vars(self._moments[parameter]).items()
        }

    def restore(self, state: Mapping[str, Tensor], named: Mapping[str, nn.Parameter]) -> None:
        """Remember what ``state`` gave, for parameters of the same names."""
        for name, parameter in named.items():
            if f"{name}|step" in state:
                values = (state[f"{name}|{field.name}"] for field in fields(_Moments))
                self._moments[parameter] = _Moments(*(value.to(parameter.device, copy=True) for value in values))

    def _moments_of(self, parameter: nn.Parameter) -> _Moments:
        found = self._moments.get(parameter)
        if found is None:
            step = torch.zeros((), device=parameter.device)
            found = self._moments[parameter] = _Moments(step, torch.zeros_like(parameter), torch.zeros_like(parameter))
        return found
