"""A family of models elsewhere as two tables, each read in both directions: its config's keys and
its tensors' names. A family is a file with these tables; nothing of what it reads is ever run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lmcli.config.fields import build, suggest
from lmcli.config.model import ModelConfig
from lmcli.errors import DataError, MismatchError, UsageError
from lmcli.model.transformer import parameters

OUTPUT = "lm_head.weight"  # absent, or a copy of the embedding, where the two are tied
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what float32 holds exactly


@dataclass(frozen=True, kw_only=True)
class Family:
    """What may stand in their config.json and safetensors, and what it is here."""

    model_type: str
    architecture: str
    base: ModelConfig  # what no key of theirs spells, and what an absent or null key means
    keys: Mapping[str, str]  # their key -> our field
    values: Mapping[str, Mapping[Any, Any]]  # our field -> their values -> ours; the first is ours
    only: Mapping[str, Any]  # their keys with the one value that we compute
    ignored: str  # pattern of keys that do not change the function
    weights: Mapping[str, tuple[str, ...]]  # their module -> ours, one below the other; {}: layer
    transposed: str  # pattern of their tensors that lie the other way round
    prefix: str  # of their tensors' names, which some files leave out
    buffers: str  # pattern of tensors that are no parameters

    def read_config(self, config: Mapping[str, Any]) -> ModelConfig:
        """Their config.json as ours; MismatchError for what ours cannot say."""
        found: dict[str, Any] = {}
        for key, value in config.items():
            if value is None or re.fullmatch(self.ignored, key):
                continue
            if key in self.only:
                if value != self.only[key]:
                    raise MismatchError(f"{key} is {value!r}; lmcli computes {self.only[key]!r}")
                continue
            if key not in self.keys:
                close = suggest(key, self.keys)
                raise MismatchError(f"{key!r} is no setting of {self.model_type} known here{close}")
            field = self.keys[key]
            table = self.values.get(field)
            if table is not None:
                if not isinstance(value, str | bool) or value not in table:
                    names = ", ".join(map(str, table))
                    raise MismatchError(f"{key} is {value!r}; lmcli computes {names}")
                value = table[value]
            if found.setdefault(field, value) != value:
                raise MismatchError(
                    f"{key} is {value!r}, but another key says {found[field]!r}, and lmcli has "
                    f"only one {field}; give both one value"
                )
        spelled = {field: key for key, field in self.keys.items()}
        try:
            return build(
                ModelConfig, asdict(self.base) | found, lambda f: spelled.get(f, f)
            ).resolved()
        except UsageError as error:
            raise MismatchError(str(error)) from None

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        """Our config as theirs; MismatchError naming the first field that would not come back."""
        config = {"model_type": self.model_type, "architectures": [self.architecture], **self.only}
        for key, field in self.keys.items():
            value = getattr(model, field)
            if field in self.values:  # what is not in the table comes back as something else
                theirs = (t for t, ours in self.values[field].items() if ours == value)
                value = next(theirs, None)
            if value is not None:
                config[key] = value
        back = asdict(self.read_config(config))
        for field, value in asdict(model).items():
            if value != back[field] and field != "init":  # which says nothing once trained
                raise MismatchError(
                    f"{field} is {value}, and {self.model_type} can only have {back[field]}"
                )
        return config

    def _rows(self, model: ModelConfig) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
        """Each of their tensors, with the parameters of `model` in it and their shapes."""
        shapes = parameters(model)
        for theirs, ours in self.weights.items():
            for layer in range(model.n_layers if "{}" in theirs else 1):
                for part in (".weight", ".bias"):
                    names = [name.format(layer) + part for name in ours]
                    if names[0] in shapes:
                        yield theirs.format(layer) + part, {name: shapes[name] for name in names}

    def read_weights(self, found: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
        """Their tensors as our float32 parameters: exactly those that the config asks for."""
        short = {name.removeprefix(self.prefix): tensor for name, tensor in found.items()}
        theirs = {n: tensor for n, tensor in short.items() if not re.fullmatch(self.buffers, n)}
        if model.n_layers > len(theirs):  # before building whatever a config claims
            raise MismatchError(f"{model.n_layers} layers cannot be in {len(theirs)} tensors")
        ours: dict[str, Tensor] = {}
        for name, shapes in self._rows(model):
            tensor = theirs.pop(name.removeprefix(self.prefix), None)
            if tensor is None:
                raise MismatchError(f"{name} is missing; the config asks for it")
            sizes = [shape[0] for shape in shapes.values()]
            turned = re.fullmatch(self.transposed, name) is not None
            expected = [sum(sizes), *next(iter(shapes.values()))[1:]][:: -1 if turned else 1]
            if list(tensor.shape) != expected or tensor.dtype not in FLOATS:
                raise MismatchError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}; the config asks for floats "
                    f"{expected}"
                )
            if not torch.isfinite(tensor).all():
                raise DataError(f"{name} holds NaN or infinity; the file is damaged")
            parts = torch.split((tensor.T if turned else tensor).float(), sizes)
            ours |= {n: part.contiguous() for n, part in zip(shapes, parts, strict=True)}
        copy = theirs.pop(OUTPUT, None)
        if copy is not None and not torch.equal(copy.float(), ours["embed.weight"]):
            raise MismatchError(f"{OUTPUT} is not the embedding, but the config ties them")
        if theirs:
            raise MismatchError(f"{min(theirs)} is no tensor of {self.model_type}")
        return ours

    def write_weights(self, ours: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
        """Our parameters under their names, as they lie in their file."""
        theirs = {}
        for name, shapes in self._rows(model):
            tensor = torch.cat([ours[n] for n in shapes])
            theirs[name] = (
                tensor.T if re.fullmatch(self.transposed, name) else tensor
            ).contiguous()
        return theirs
