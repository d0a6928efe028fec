"""AdamW, and Muon for the blocks' matrices; state keyed by parameter name.

Weight decay applies to matrices only. Rates are per group, relative to `--lr`.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lmcli.config.training import TrainingConfig
from lmcli.errors import DataError
from lmcli.model.transformer import Transformer
from lmcli.training.muon import Muon

# With muon, `--lr` is the rate of the matrices; the rest follows at these shares of it, since an
# orthogonalised update is much larger than an Adam update of the same rate.
# The embedding's share is for entries of size 1 and follows their initial size.
MUON_EMBED, MUON_OUTPUT, MUON_OTHER = 10.0, 0.3, 0.05


class AdamW:
    """torch's fused one without its class, which takes a second to import torch._dynamo."""

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float
    ) -> None:
        self.param_groups, self.betas, self.eps = groups, betas, eps
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for p in trained:
                if not self.state[p]:
                    self.state[p] = {k: p.new_zeros(shape) for k, shape in self.shapes(p).items()}
            averages, squares, steps = (
                [self.state[p][key] for p in trained] for key in ("exp_avg", "exp_avg_sq", "step")
            )
            adamw(
                *(trained, [p.grad for p in trained], averages, squares, [], steps),
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.eps,
            )

    @staticmethod
    def shapes(parameter: Tensor) -> dict[str, torch.Size]:
        """The state of a parameter, by name."""
        shape = parameter.shape
        return {"exp_avg": shape, "exp_avg_sq": shape, "step": torch.Size()}


class Optimizer:
    """The optimizers of one model behind one `step`; each parameter is in exactly one group."""

    def __init__(self, model: Transformer, config: TrainingConfig) -> None:
        self.names: dict[Tensor, str] = {
            p: n for n, p in model.named_parameters() if p.requires_grad
        }
        muon, matrices = config.optimizer == "muon", list[Tensor]()
        rest: defaultdict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for parameter, name in self.names.items():
            is_matrix = parameter.ndim == 2
            if muon and is_matrix and ".blocks." in name:
                matrices.append(parameter)
            else:
                share = _share_beside_muon(name, model.embedding_std) if muon else 1.0
                rest[share, config.weight_decay if is_matrix else 0.0].append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": parameters, "share": share, "weight_decay": decay}
            for (share, decay), parameters in rest.items()
        ]
        betas = (config.beta1, config.beta2)
        self.optimizers: list[AdamW | Muon] = [AdamW(groups, betas, config.adam_eps)]
        if matrices:
            group = {"params": matrices, "share": 1.0, "weight_decay": config.weight_decay}
            low = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
            self.optimizers.append(Muon([group], low))
        self.decay, self.mean = config.ema, dict[Tensor, Tensor]()

    def step(self, lr: float, step: int = 1) -> None:
        """Update number `step` at the learning rate `lr`; frees the gradients."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            optimizer.step()
        self.zero_grad()
        if self.decay:
            self._average(step)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Moves the running mean, which forgets faster at first."""
        if not self.mean:
            self.mean = {p: p.detach().clone() for p in self.names}
        share = max(1 - self.decay, 9 / (9 + step))
        torch._foreach_lerp_(list(self.mean.values()), list(self.mean), share)  # noqa: SLF001

    def zero_grad(self) -> None:
        for parameter in self.names:
            parameter.grad = None

    def reset(self) -> None:
        """As before the first step."""
        self.zero_grad()
        self.mean = {}
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def state_tensors(self) -> dict[str, Tensor]:
        """`<state>.<parameter name>` -> tensor, for safetensors."""
        tensors = {f"ema.{self.names[p]}": mean for p, mean in self.mean.items()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    tensors[f"{key}.{self.names[parameter]}"] = torch.as_tensor(value)
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`; what does not fit the model is a DataError.

        None at all is the state before the first update.
        """
        parameters = {name: p for p, name in self.names.items()}
        owner = {p: o for o in self.optimizers for g in o.param_groups for p in g["params"]}
        for key, value in tensors.items():
            state, _, name = key.partition(".")
            if name not in parameters:
                raise DataError(f"optimizer state {key!r} belongs to no parameter of this model")
            parameter = parameters[name]
            if state == "ema":
                self.mean[parameter] = value.to(parameter.device)
            else:
                owner[parameter].state[parameter][state] = value.to(parameter.device)
        for parameter, name in self.names.items() if tensors else ():
            if self.decay and self.mean.get(parameter, torch.empty(0)).shape != parameter.shape:
                raise DataError(f"the running mean of parameter {name!r} does not fit it")
            optimizer = owner[parameter]
            shapes = {key: value.shape for key, value in optimizer.state[parameter].items()}
            if shapes != optimizer.shapes(parameter):
                raise DataError(f"the optimizer state of parameter {name!r} does not fit it")


def _share_beside_muon(name: str, embedding_std: float) -> float:
    """The rate of a parameter that is AdamW's, as a share of muon's."""
    if name.startswith(("embed", "position")):
        return MUON_EMBED * embedding_std
    return MUON_OUTPUT if name.startswith("output") else MUON_OTHER
