"""AdamW, and Muon for the blocks' matrices; state keyed by parameter name.

Weight decay applies to matrices only. Rates are per group, relative to `--lr`.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lmcli.config.training import TrainingConfig
from lmcli.errors import DataError
from lmcli.model.transformer import Transformer
from lmcli.training.muon import Muon, States, Tensors

# With muon, `--lr` is the rate of the matrices; the rest follows at these shares of it, since an
# orthogonalised update is much larger than an Adam update of the same rate.
# The embedding's share is for entries of size 1 and follows their initial size.
MUON_EMBED, MUON_OUTPUT, MUON_OTHER = 10.0, 0.3, 0.05


class AdamW:
    """torch's fused one without its class, which takes a second to import torch._dynamo."""

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def update(self, grads: Tensors, states: States, lr: float, decay: float) -> None:
        """Moves the parameters that have these gradients."""
        averages, squares, steps = (
            [states[p][key] for p in grads] for key in ("exp_avg", "exp_avg_sq", "step")
        )
        adamw(
            *(list(grads), list(grads.values()), averages, squares, [], steps),
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=decay,
            eps=self.eps,
        )

    @staticmethod
    def shapes(parameter: Tensor) -> dict[str, torch.Size]:
        """The state of a parameter, by name; it begins as zeros."""
        shape = parameter.shape
        return {"exp_avg": shape, "exp_avg_sq": shape, "step": torch.Size()}


class Optimizer:
    """AdamW and Muon behind one `step`; each parameter is in exactly one group."""

    def __init__(self, model: Transformer, config: TrainingConfig) -> None:
        self.names: dict[Tensor, str] = {
            p: n for n, p in model.named_parameters() if p.requires_grad
        }
        adam = AdamW(config.beta1, config.beta2, config.adam_eps)
        muon = Muon(torch.bfloat16 if config.dtype == "bfloat16" else torch.float32)
        # By rule, share of the learning rate and weight decay.
        self.groups: defaultdict[tuple[AdamW | Muon, float, float], list[Tensor]]
        self.groups = defaultdict(list)
        for parameter, name in self.names.items():
            is_matrix = parameter.ndim == 2
            decay = config.weight_decay if is_matrix else 0.0
            if config.optimizer == "adamw":
                self.groups[adam, 1.0, decay].append(parameter)
            elif is_matrix and ".blocks." in name:
                self.groups[muon, 1.0, decay].append(parameter)
            else:
                share = _share_beside_muon(name, model.embedding_std)
                self.groups[adam, share, decay].append(parameter)
        self.state: States = defaultdict(dict)
        self.decay, self.mean = config.ema, dict[Tensor, Tensor]()

    @torch.no_grad()
    def step(self, lr: float, step: int = 1) -> None:
        """Update number `step` at the learning rate `lr`; frees the gradients."""
        for (rule, share, decay), parameters in self.groups.items():
            grads = {p: p.grad for p in parameters if p.grad is not None}
            for p in grads:
                if not self.state[p]:
                    self.state[p] = {k: p.new_zeros(shape) for k, shape in rule.shapes(p).items()}
            rule.update(grads, self.state, lr * share, decay)
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
        self.state.clear()
        self.mean = {}

    def state_tensors(self) -> dict[str, Tensor]:
        """`<state>.<parameter name>` -> tensor, for safetensors."""
        tensors = {f"ema.{self.names[p]}": mean for p, mean in self.mean.items()}
        for parameter, state in self.state.items():
            tensors |= {f"{key}.{self.names[parameter]}": value for key, value in state.items()}
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`; what does not fit the model is a DataError.

        None at all is the state before the first update.
        """
        parameters = {name: p for p, name in self.names.items()}
        for key, value in tensors.items():
            state, _, name = key.partition(".")
            if name not in parameters:
                raise DataError(f"optimizer state {key!r} belongs to no parameter of this model")
            parameter = parameters[name]
            if state == "ema":
                self.mean[parameter] = value.to(parameter.device)
            else:
                self.state[parameter][state] = value.to(parameter.device)
        rules = {p: rule for (rule, *_), group in self.groups.items() for p in group}
        for parameter, name in self.names.items() if tensors else ():
            if self.decay and self.mean.get(parameter, torch.empty(0)).shape != parameter.shape:
                raise DataError(f"the running mean of parameter {name!r} does not fit it")
            shapes = {key: value.shape for key, value in self.state[parameter].items()}
            if shapes != rules[parameter].shapes(parameter):
                raise DataError(f"the optimizer state of parameter {name!r} does not fit it")


def _share_beside_muon(name: str, embedding_std: float) -> float:
    """The rate of a parameter that is AdamW's, as a share of muon's."""
    if name.startswith(("embed", "position")):
        return MUON_EMBED * embedding_std
    return MUON_OUTPUT if name.startswith("output") else MUON_OTHER
