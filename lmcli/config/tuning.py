"""What pairs mean to a run, and which of its weights learn."""

from dataclasses import dataclass

from lmcli.config.fields import flag, option
from lmcli.errors import UsageError

TASKS = ("translation", "summarization", "qa", "code", "chat")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """How a model reads pairs; `template` is stored as text, never as a file name."""

    task: str | None = option(None, "what the pairs are, for template and metric", choices=TASKS)
    template: str | None = option(
        None, "file with {source} where the source goes, and the words around it"
    )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which weights learn. LoRA (Hu et al. 2022) adds B A x alpha / rank to frozen matrices."""

    lora_rank: int = option(0, "learn low-rank updates of this rank only; 0: all weights")
    lora_alpha: float = option(0.0, "scale of the updates times the rank; 0: twice the rank")
    lora_targets: str = option(
        "q_proj,k_proj,v_proj,o_proj,up,gate,down", "matrices that get an update"
    )
    freeze: str = option("", "weights that stay as they are, by names such as 'embed*,encoder.*'")

    def __post_init__(self) -> None:
        if self.lora_rank and self.freeze:
            raise UsageError("--freeze: with --lora-rank all but the updates is frozen already")
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_targets"):
                if getattr(self, name) != getattr(AdapterConfig, name):
                    raise UsageError(f"{flag(name)} needs --lora-rank")

    @property
    def lora_scale(self) -> float:
        return (self.lora_alpha or 2 * self.lora_rank) / max(1, self.lora_rank)


@dataclass(frozen=True, kw_only=True)
class TuningConfig(TaskConfig, AdapterConfig):
    """The tuning part of a run's config.json."""
