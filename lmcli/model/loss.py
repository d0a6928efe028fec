"""The one way from hidden states to nats: training, validation, perplexity and scoring use it.

Shapes: N tokens, C d_model, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmcli.model.transformer import Transformer

# Logits of one chunk in float32 stay below 64 MiB; larger ones are recomputed in the backward pass.
CHUNK_ELEMENTS = 2**24


def token_nll(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log softmax(logits)[target] in nats, float32: [N, V] and [N] -> [N].

    `smoothing` moves that share of the target's mass to all tokens alike (Szegedy et al. 2016).
    """
    return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)


def nll(
    model: Transformer, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Nats of each target: hidden [.., C], targets [..] -> [..], a chunk of rows at a time."""
    rows, flat = hidden.flatten(0, -2), targets.flatten()
    step = max(1, CHUNK_ELEMENTS // model.config.vocab_size)

    def part(h: Tensor, t: Tensor) -> Tensor:
        return token_nll(model.logits(h), t, label_smoothing)

    if len(rows) <= step:
        return part(rows, flat).view_as(targets)
    parts = []
    for h, t in zip(torch.split(rows, step), torch.split(flat, step), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(part, h, t, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(part(h, t))
    return torch.cat(parts).view_as(targets)


def summed_nll(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Nats summed over the targets whose `loss_mask` is True (None: all); divide by their number
    once. The others never reach the output layer, which is most of the work of a small model.
    """
    if loss_mask is not None:
        hidden, targets = hidden[loss_mask], targets[loss_mask]
    return nll(model, hidden, targets, label_smoothing).sum()
