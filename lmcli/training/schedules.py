"""Learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

from lmcli.config.training import TrainingConfig


def lr_factor(config: TrainingConfig, step: int) -> float:
    """The learning rate of update `step` (1 is the first) as a share of the peak.

    Linear warm-up, then the schedule's shape down to `final_lr_fraction` at the last step.
    wsd (warm-up, stable, decay) is constant until its last `decay_fraction` of the steps, then
    linear (Hu et al. 2024, MiniCPM, section 4). inverse-sqrt falls as 1/sqrt(step) (Vaswani et al.
    2017, section 5.3).
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule == "inverse-sqrt":
        return math.sqrt(max(1, config.warmup_steps) / step)
    low, high = config.warmup_steps, config.steps
    if config.schedule == "wsd":
        low = max(low, high - round(config.decay_fraction * high))
    if config.schedule == "constant" or step <= low:
        return 1.0
    done = min(1.0, (step - low) / max(1, high - low))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * shape
