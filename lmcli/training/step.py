"""The gradients of one step: forward and backward over its micro-batches."""

from collections.abc import Sequence

import torch

from lmcli.config.training import TrainingConfig
from lmcli.dataset.batches import Batch
from lmcli.model.loss import summed_nll
from lmcli.randomness import mix
from lmcli.training.precision import Working


def gradients(
    working: Working, parts: Sequence[Batch], config: TrainingConfig, step: int
) -> tuple[float, float, int]:
    """Fills the gradients of a step's batch; returns nats per token, gradient norm, tokens.

    The loss is summed over all micro-batches, its `parts`, and divided once by the step's valid
    tokens, so accumulation changes nothing but memory.
    """
    tokens = sum(int(batch.loss_mask.sum()) for batch in parts)
    working.model.train()
    for _, weight in working.learn:
        weight.grad = None  # of a pass that memory ended
    nats = torch.zeros((), device=working.device)
    for micro, batch in enumerate(parts):
        # Dropout's; torch.manual_seed asks every other kind of device too, a millisecond a time.
        seeded = torch.default_generator if working.device == "cpu" else torch
        seeded.manual_seed(mix(config.seed, step, micro) >> 1)
        nll = forward_nll(working, batch, config)
        torch.autograd.backward(nll / tokens)
        working.collect(first=micro == 0)
        nats += nll.detach()
    parameters = [master for master, _ in working.learn]
    limit = config.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    loss, norm = torch.stack([nats / tokens, grad_norm]).tolist()  # the one wait for the device
    return loss, norm, tokens


def forward_nll(working: Working, batch: Batch, config: TrainingConfig) -> torch.Tensor:
    """Summed nats of a batch's valid targets."""
    fields = {
        name: torch.from_numpy(array).to(working.device)
        for name, array in vars(batch).items()
        if array is not None and not (name.endswith("_mask") and array.all())
    }
    targets, loss_mask = fields.pop("targets"), fields.pop("loss_mask", None)
    hidden, smoothing = working.forward(**fields), config.label_smoothing
    return summed_nll(working.model, hidden, targets, loss_mask, smoothing, config.z_loss)
