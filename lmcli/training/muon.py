"""Muon: momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

The same update as torch.optim.Muon, with two differences that matter on a CPU: without bfloat16
units, where torch's takes longer than the forward and backward passes, the Newton-Schulz iteration
runs in float32, and matrices of one shape go through it together.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """[N, R, C] -> nearly orthogonal matrices of the same row and column spaces."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x.mT if tall else x


class Muon:
    """Nesterov momentum, decoupled weight decay; for matrices only.

    The update's size follows the matrix shape by sqrt(max(1, rows / columns)).
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype = torch.float32) -> None:
        self.param_groups, self.dtype = groups, dtype
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = torch.stack([self._direction(parameter) for parameter in parameters])
                updates = orthogonalise(directions, self.dtype)
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        """The gradient with its momentum."""
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - MOMENTUM)
        return grad.lerp(buffer, MOMENTUM)

    @staticmethod
    def shapes(parameter: Tensor) -> dict[str, torch.Size]:
        """The state of a parameter, by name."""
        return {"momentum_buffer": parameter.shape}
