"""The one way from hidden states to nats: training, validation, perplexity and scoring use it.

Shapes: N tokens, C d_model, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcli.model.transformer import Transformer

# Logits of one chunk in float32 stay below 32 MiB; those of a large vocabulary are never whole.
CHUNK_ELEMENTS = 2**23


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] in nats, float32: [N, V] and [N] -> [N]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def nll(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target: hidden [.., C], targets [..] -> [..], a chunk of rows at a time."""
    rows, flat = hidden.flatten(0, -2), targets.flatten()
    step = max(1, CHUNK_ELEMENTS // model.config.vocab_size)
    parts = zip(torch.split(rows, step), torch.split(flat, step), strict=True)
    return torch.cat([token_nll(model.logits(h), t) for h, t in parts]).view_as(targets)


def summed_nll(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Nats summed over the targets whose `loss_mask` is True (None: all); divide by their number
    once. The others never reach the output layer, which is most of the work of a small model.

    `label_smoothing` moves that share of a target's mass to all tokens alike (Szegedy et al. 2016).
    """
    rows, flat = hidden.flatten(0, -2), targets.flatten()
    if loss_mask is not None:
        rows, flat = rows[loss_mask.flatten()], flat[loss_mask.flatten()]
    weight, bias = model.output_weight, model.output_bias_or_none
    if not torch.is_grad_enabled():
        label_smoothing = 0.0
    total: Tensor = _SummedNLL.apply(rows, weight, bias, flat, label_smoothing)  # type: ignore[no-untyped-call]
    return total


class _SummedNLL(torch.autograd.Function):
    """Output layer, softmax and loss in one: a chunk's gradients are taken while its logits are
    there, so that none is kept or computed twice (as in Liger, Hsu et al. 2024)."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
    ) -> Tensor:
        learns = any(ctx.needs_input_grad)
        dtype = rows.dtype
        if torch.is_autocast_enabled(rows.device.type):
            dtype = torch.get_autocast_dtype(rows.device.type)
        with torch.autocast(rows.device.type, enabled=False):
            return _SummedNLL._chunks(ctx, rows, weight, bias, targets, smoothing, learns, dtype)

    @staticmethod
    def _chunks(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        learns: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        n_vocab = len(weight)
        h_all, w = rows.to(dtype), weight.to(dtype)
        total = rows.new_zeros((), dtype=torch.float32)
        grad_rows = torch.empty_like(rows) if learns else None
        grad_weight = torch.zeros_like(weight) if learns else None
        grad_bias = torch.zeros_like(bias) if learns and bias is not None else None
        step = max(1, CHUNK_ELEMENTS // n_vocab)
        for start in range(0, len(rows), step):
            h, t = h_all[start : start + step], targets[start : start + step, None]
            logits = F.linear(h, w).float()
            if bias is not None:
                logits += bias
            wanted = (1 - smoothing) * logits.gather(1, t)
            if smoothing:
                wanted += smoothing * logits.mean(1, keepdim=True)
            largest = logits.amax(1, keepdim=True)
            grad = logits.sub_(largest).exp_()
            mass = grad.sum(1, keepdim=True)
            total += (largest + mass.log() - wanted).sum()
            if grad_rows is None or grad_weight is None:
                continue
            grad /= mass
            if smoothing:
                grad -= smoothing / n_vocab
            grad.scatter_add_(1, t, torch.full_like(wanted, smoothing - 1))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            low = grad.to(dtype)
            grad_rows[start : start + step] = low @ w
            if dtype == weight.dtype:
                grad_weight.addmm_(low.T, h)
            else:
                grad_weight += low.T @ h
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else g * grads[0] for g in ctx.saved_tensors]
        return (*scaled, None, None)
