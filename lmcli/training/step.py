"""The gradients of one step: forward and backward over its micro-batches."""

import contextlib
from collections.abc import Callable

import torch

from lmcli.config.training import TrainingConfig
from lmcli.dataset.batches import Batch, Batches
from lmcli.model.loss import summed_nll
from lmcli.model.transformer import Transformer
from lmcli.randomness import mix
from lmcli.training.clock import Clock
from lmcli.training.precision import Working


def gradients(
    working: Working,
    batches: Batches,
    config: TrainingConfig,
    step: int,
    index: int,
    clock: Clock | None = None,
) -> tuple[float, float, int]:
    """Fills the gradients of global batch `index`; returns nats per token, gradient norm, tokens.

    The loss is summed over all micro-batches and divided once by the step's valid tokens, so
    accumulation changes nothing but memory.
    """
    with clock.measure("data") if clock else contextlib.nullcontext():
        parts = batches.parts(index, config.batch_size, config.micro_batch_size)
    tokens = sum(int(batch.loss_mask.sum()) for batch in parts)
    model, device = working.model, working.master.embed.weight.device.type
    model.train()
    for _, weight in working.learn:
        weight.grad = None  # of a pass that memory ended
    nats = torch.zeros((), device=device)
    for micro, batch in enumerate(parts):
        # Dropout's; torch.manual_seed asks every other kind of device too, a millisecond a time.
        seeded = torch.default_generator if device == "cpu" else torch
        seeded.manual_seed(mix(config.seed, step, micro) >> 1)
        nll = forward_nll(model, batch, device, config, working.forward)
        torch.autograd.backward(nll / tokens)
        working.collect(first=micro == 0)
        nats += nll.detach()
    parameters = [master for master, _ in working.learn]
    limit = config.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    loss, norm = torch.stack([nats / tokens, grad_norm]).tolist()  # the one wait for the device
    return loss, norm, tokens


def forward_nll(
    model: Transformer,
    batch: Batch,
    device: str,
    config: TrainingConfig,
    forward: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Summed nats of a batch's valid targets; `forward` may be the model, compiled."""
    fields = {
        name: torch.from_numpy(array).to(device)
        for name, array in vars(batch).items()
        if array is not None and not (name.endswith("_mask") and array.all())
    }
    targets, loss_mask = fields.pop("targets"), fields.pop("loss_mask", None)
    hidden = model(**fields) if forward is None else forward(**fields)
    return summed_nll(model, hidden, targets, loss_mask, config.label_smoothing, config.z_loss)
