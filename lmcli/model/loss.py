"""The one way from hidden states to nats: training, validation, perplexity and scoring use it.

Shapes: N tokens, C d_model, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcli.model.kernels import PARTS, Function
from lmcli.model.transformer import Transformer

# Of logits at a time: those of a large vocabulary are never whole.
CHUNK_BYTES = {"cpu": 2**26}
MOST_ROWS = {"cpu": 512}  # what caches like


def _chunk(rows: Tensor, n_vocab: int) -> int:
    """Rows whose logits are made at a time."""
    device = rows.device.type
    fit = CHUNK_BYTES.get(device, 2**30) // (n_vocab * rows.itemsize)
    return max(1, min(fit, MOST_ROWS.get(device, fit)))


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] in nats, float32: [N, V] and [N] -> [N]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def nll(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target: hidden [.., C], targets [..] -> [..], a chunk of rows at a time."""
    rows, flat = hidden.flatten(0, -2), targets.flatten()
    step = _chunk(rows, model.config.vocab_size)
    parts = zip(torch.split(rows, step), torch.split(flat, step), strict=True)
    return torch.cat([token_nll(model.logits(h), t) for h, t in parts]).view_as(targets)


def summed_nll(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Nats summed over the targets whose `loss_mask` is True (None: all); divide by their number
    once. The others never reach the output layer, which is most of the work of a small model.

    `label_smoothing` moves that share of a target's mass to all tokens alike (Szegedy et al. 2016).
    `z_loss` pulls the log of the softmax's sum to 0 by this times its square, in the gradients
    alone (Chowdhery et al. 2022, section 5): nats stay nats.
    """
    rows, flat = hidden.flatten(0, -2), targets.flatten()
    if loss_mask is not None:
        rows, flat = rows[loss_mask.flatten()], flat[loss_mask.flatten()]
    weight, bias = model.output_weight, model.output_bias_or_none
    return _SummedNLL.apply(rows, weight, bias, flat, label_smoothing, z_loss)


class _SummedNLL(Function):
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
        z_loss: float,
    ) -> Tensor:
        n_vocab, learns = len(weight), any(ctx.needs_input_grad)
        total = rows.new_zeros((), dtype=torch.float32)
        grad_rows = torch.empty_like(rows) if learns else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias, wide = None, torch.promote_types(rows.dtype, torch.float32)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias, dtype=wide)
        # The mean of all logits, and its gradients, follow from the mean row of the weights.
        mean_weight = weight.mean(0) if smoothing else None
        mean_bias = 0.0 if bias is None or not smoothing else bias.mean()
        step = _chunk(rows, n_vocab)
        kept: Tensor | None = None  # sums of PARTS chunks
        for start in range(0, len(rows), step):
            h, t = rows[start : start + step], targets[start : start + step, None]
            logits = F.linear(h, weight, bias)
            wanted = logits.gather(1, t).float()
            # In float32 for what in bfloat16 is less than it rounds to.
            grad = logits.softmax(1, dtype=wide if z_loss else None)
            del logits
            # What is less than the smallest float counts as that: 87 nats.
            likely = grad.gather(1, t)
            nats = -likely.float().clamp(min=torch.finfo(torch.float32).tiny).log()
            if mean_weight is not None:
                mean = (h @ mean_weight + mean_bias).float()
                total += (nats + smoothing * (wanted - mean[:, None])).sum()
            else:
                total += nats.sum()
            if grad_rows is None:
                continue
            if z_loss:
                grad = grad.mul_(1 + 2 * z_loss * (wanted + nats)).to(h.dtype)
                likely = grad.gather(1, t)
            here = torch.arange(len(t), device=t.device)  # scatter_ copies everything to float32
            grad[here, t[:, 0]] = (likely + (smoothing - 1))[:, 0]
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=wide)
            torch.mm(grad, weight, out=grad_rows[start : start + step])
            if mean_weight is not None:
                grad_rows[start : start + step].sub_(mean_weight, alpha=smoothing)
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, h)
                if start and start % (PARTS * step) == 0 and wide != rows.dtype:
                    kept = grad_weight.to(wide) if kept is None else kept.add_(grad_weight)
                    grad_weight.zero_()
        if grad_weight is not None and kept is not None:
            grad_weight.copy_(kept.add_(grad_weight))
        if smoothing and grad_weight is not None:
            grad_weight.sub_(rows.sum(0), alpha=smoothing / n_vocab)
        if smoothing and grad_bias is not None:
            grad_bias -= smoothing * len(rows) / n_vocab
        if grad_bias is not None and bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        own = ctx.saved_tensors
        for each in own:  # in place, so that the one of a large vocabulary is there once
            if each is not None:
                each.mul_(grads[0].to(each.dtype))
        return (*own, None, None, None)
