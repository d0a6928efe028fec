"""How a model is trained: optimizer, schedule, batch, intervals, machine."""

from dataclasses import dataclass, field
from typing import Any

from lmcli.config.fields import choice, option
from lmcli.config.units import parse_duration
from lmcli.errors import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16")
# What may change when a run is continued; each change is recorded as an event in the run.
CHANGEABLE = (
    *("steps", "eval_every", "eval_prompt", "save_every", "log_every", "device"),
    *("on_nonfinite", "on_spike", "spike_sigma", "max_skips"),
)


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What a new run starts from."""

    data: str | None = option(None, "dataset to train on; a new run needs one")
    preset: str | None = option(
        None, "model shape, nano to gpt2-xl or transformer-tiny to -big; settings win"
    )
    size: int | None = option(
        None,
        "the dial: about this many parameters in the blocks (1M, 10M, 1B); shape, batch, rate and "
        "steps follow from it (docs/recipes.md)",
        low=50_000,
    )
    ratio: float | None = option(
        None, "with size: tokens per parameter; default 20", low=0.01, high=1e6
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training half of a run's config.json. Sizes are per optimizer step, over all ranks."""

    steps: int = option(1000, "optimizer steps in all", low=1)
    batch_size: int = option(16, "sequences per step", low=1, high=2**20)
    batch_tokens: int = option(
        0,
        "pairs: tokens per step of the longer side with its padding; 0: 4096, or batch_size pairs "
        "where that is given",
        high=2**26,
    )
    pack: bool = option(False, "pairs: several in one row, kept apart (decoder-only)")
    micro_batch_size: int = option(
        0, "sequences per forward pass; the step accumulates them; 0: batch_size"
    )
    optimizer: str = choice(("adamw", "muon"), "adamw, or muon for the blocks' matrices")
    lr: float = option(3e-3, "peak learning rate")
    schedule: str = choice(
        ("cosine", "linear", "constant", "wsd", "inverse-sqrt"), "learning-rate schedule"
    )
    warmup_steps: int = option(20, "steps of linear warm-up")
    warmup_tokens: int = option(0, "tokens of linear warm-up instead of steps; 0: warmup_steps")
    decay_fraction: float = option(0.4, "share of the steps that wsd decays over", high=1)
    final_lr_fraction: float = option(0.0, "learning rate at the end, of the peak", high=1)
    weight_decay: float = option(0.1, "decoupled weight decay on matrices")
    beta1: float = option(0.9, "AdamW first-moment decay", high=0.9999)
    beta2: float = option(0.95, "AdamW second-moment decay", high=0.99999)
    adam_eps: float = option(1e-8, "AdamW epsilon")
    label_smoothing: float = option(
        0.0, "share of a target's mass given to all tokens, in training", high=0.9
    )
    z_loss: float = option(
        0.0, "weight of the squared log of the softmax's sum, which keeps logits small"
    )
    ema: float = option(
        0.0, "decay of a running mean of the weights, which is what is used; 0: off", high=1
    )
    grad_clip: float = option(1.0, "clip the gradient norm to this; 0: off")
    seed: int = option(0, "seed of weights, data order and dropout")
    eval_every: int = option(100, "validate every N steps; 0: at the end")
    eval_tokens: int = option(65536, "validate on the first N tokens of the split; 0: all")
    eval_prompt: str | None = option(None, "completed and shown at each validation")
    save_every: int = option(100, "checkpoint every N steps; 0: at the end")
    log_every: int = option(10, "log every N steps", low=1)
    keep_last: int = option(2, "newest checkpoints kept besides the best", low=1)
    average_last: int = option(
        0, "use the mean of the last N checkpoints, which are kept; 0: use the best"
    )
    best_by: str = choice(
        ("loss", "bleu", "chrf", "rougeL", "exact_match", "squad_em", "squad_f1", "pass@1"),
        "what the best checkpoint is best by: validation loss, or a metric of the outputs for "
        "eval_pairs of the val split",
    )
    problems: str | None = option(
        None, "prompts with tests (JSONL); best_by pass@1 runs what the model makes of them"
    )
    eval_pairs: int = option(200, "pairs of the val split that best_by decodes", low=1)
    patience: int = option(0, "stop after N validations in a row without a new best; 0: never")
    on_nonfinite: str = choice(
        ("abort", "skip", "rewind"),
        "NaN or infinity in loss or gradients, which never reaches the weights: abort, skip the "
        "update, or rewind to the last checkpoint and leave out the data since",
    )
    on_spike: str = choice(
        ("ignore", "abort", "skip", "rewind"),
        "the same for a loss or gradient norm far above the last 128 steps",
    )
    spike_sigma: float = option(6.0, "what is far: standard deviations above the mean", low=1)
    max_skips: int = option(10, "skips and rewinds in a run before it aborts")
    device: str = choice(DEVICES, "cpu, cuda, mps or auto")
    dtype: str = choice(DTYPES, "compute precision; weights stay float32")
    compile: str = choice(("auto", "on", "off"), "torch.compile, where it pays back within the run")
    recompute: bool = option(False, "keep no activations of a block, but compute them again")
    budget: str | None = option(
        None,
        "wall-clock time of training, such as 10min, besides some seconds of measuring: "
        "steps follow, decay ends with it",
        unit="duration",
    )
    tune: bool = option(
        True,
        "keep freed memory (glibc), 10 to 20 % of a step, and few of oneDNN's shapes; "
        "fewer threads while others need cores",
    )
    threads: int = option(0, "CPU threads; 0: all cores this process may use", high=1024)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UsageError(f"--lr must be above 0, not {self.lr:g}")
        if self.patience and not self.eval_every:
            raise UsageError("--patience counts validations; --eval-every 0 has only the last")
        if (self.best_by == "pass@1") != (self.problems is not None):
            raise UsageError("--best-by pass@1 and --problems FILE go together")
        if self.budget is not None and not 1 <= parse_duration(self.budget) <= 1e9:
            raise UsageError(f"--budget {self.budget} must be from 1s to some years")


@dataclass(frozen=True)
class Asked:
    """What the user gave to start or continue a run, each part of it optional."""

    data: str | None = None
    preset: str | None = None
    origin: str | None = None  # --from: the run whose best weights a new one begins with
    given: dict[str, Any] = field(default_factory=dict)
    usual: dict[str, Any] = field(default_factory=dict)  # instead of the defaults
    profile: int = 0  # steps to trace
    allow_code_execution: bool = False
