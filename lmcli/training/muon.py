"""Muon: momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

The same update as torch.optim.Muon, with two differences that matter on a CPU: without bfloat16
units, where torch's takes longer than the forward and backward passes, the Newton-Schulz iteration
runs in float32, and matrices of one shape go through it together.
"""

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95

Tensors = dict[Tensor, Tensor]  # one for each parameter
States = dict[Tensor, dict[str, Tensor]]  # of each parameter, by name


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

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def update(self, grads: Tensors, states: States, lr: float, decay: float) -> None:
        """Moves the parameters that have these gradients."""
        by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in grads:
            by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            directions = []
            for p in parameters:
                momentum = states[p]["momentum_buffer"].lerp_(grads[p], 1 - MOMENTUM)
                directions.append(grads[p].lerp(momentum, MOMENTUM))
            updates = orthogonalise(torch.stack(directions), self.dtype)
            rate = lr * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - lr * decay)
                parameter.add_(update, alpha=-rate)

    @staticmethod
    def shapes(parameter: Tensor) -> dict[str, torch.Size]:
        """The state of a parameter, by name; it begins as zeros."""
        return {"momentum_buffer": parameter.shape}
