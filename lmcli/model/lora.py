"""Low-rank updates of frozen matrices: W + scale * B A (Hu et al. 2022, section 4.1), and other
ways to let only some of the weights learn.

`<matrix>.lora_a` [rank, in] and `<matrix>.lora_b` [out, rank] stand beside `<matrix>.weight`.
"""

import fnmatch
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcli.config.tuning import AdapterConfig
from lmcli.errors import UsageError
from lmcli.model.kernels import Linear
from lmcli.model.transformer import Transformer, draw


class LoRALinear(Linear):
    """A linear layer with an update; its weight and bias are those of the layer it replaces."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return super().forward(x) + self.scale * update


def adapt(model: Transformer, config: AdapterConfig) -> None:
    """Adds the updates and freezes what is not to learn; UsageError for a name of nothing."""
    if config.lora_rank:
        targets = [t.strip() for t in config.lora_targets.split(",")]
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        layers.pop("output", None)  # the loss reads its weights
        known = {name.rpartition(".")[2] for name in layers}
        wrong = [target for target in targets if target not in known]
        if wrong and config.lora_targets != AdapterConfig.lora_targets:
            raise UsageError(f"--lora-targets {wrong[0]}: the model has {', '.join(sorted(known))}")
        model.requires_grad_(False)
        for name, layer in layers.items():
            parent, _, last = name.rpartition(".")
            if last in targets:
                update = LoRALinear(layer, config.lora_rank, config.lora_scale)
                setattr(model.get_submodule(parent), last, update)
    for pattern in filter(None, map(str.strip, config.freeze.split(","))):
        frozen = [p for n, p in model.named_parameters() if fnmatch.fnmatch(n, pattern)]
        if not frozen:
            raise UsageError(f"--freeze {pattern}: no weight has such a name; see `inspect model`")
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError("--freeze leaves no weight to learn")


def start(model: Transformer, seed: int) -> dict[str, Tensor]:
    """The first values of all updates, which change nothing: A random, B zero."""
    return {
        name: draw(seed, name, p.shape) * p.shape[1] ** -0.5
        if name.endswith("lora_a")
        else torch.zeros(p.shape)
        for name, p in model.named_parameters()
        if name.endswith(("lora_a", "lora_b"))
    }


def merged(tensors: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """The weights of a plain model that computes the same."""
    plain = {n: t for n, t in tensors.items() if not n.endswith((".lora_a", ".lora_b"))}
    for name in tensors:
        layer, found, _ = name.partition(".lora_a")
        if found:
            update = tensors[f"{layer}.lora_b"] @ tensors[name]
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + config.lora_scale * update
    return plain
