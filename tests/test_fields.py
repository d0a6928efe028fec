"""What a value may be, wherever it comes from: every field of every config."""

import dataclasses

import pytest

from lmcli.config import fields
from lmcli.config.data import ReadConfig, SplitConfig, TokenizerConfig
from lmcli.config.generation import GenerationConfig
from lmcli.config.model import ModelConfig
from lmcli.config.scoring import EvaluationConfig
from lmcli.config.training import TrainingConfig
from lmcli.errors import MissingInputError, UsageError

CONFIGS = (
    *(ModelConfig, TrainingConfig, GenerationConfig, EvaluationConfig),
    *(ReadConfig, SplitConfig, TokenizerConfig),
)
EVERY = [(c, f) for c in CONFIGS for f in dataclasses.fields(c)]


@pytest.mark.parametrize(("config", "field"), EVERY, ids=lambda x: getattr(x, "name", ""))
def test_every_field_has_help_and_a_default_that_is_a_legal_value(config, field):
    assert field.metadata["help"]
    if field.default is not None:
        assert fields.convert(field, field.default, "it") == field.default
        as_text = str(field.default)
        assert fields.convert(field, as_text, "it") == field.default


@pytest.mark.parametrize("value", [[], {}, object(), True, "nan", "inf", "1e999", "-1", "x", ""])
@pytest.mark.parametrize("name", ["steps", "lr", "schedule", "seed"])
def test_no_value_is_a_bug(name, value):
    known = {f.name: f for f in dataclasses.fields(TrainingConfig)}
    with pytest.raises(UsageError, match=f"^--{name}[: ]"):
        fields.convert(known[name], value, fields.flag(name))


def test_booleans_read_as_words():
    known = {f.name: f for f in dataclasses.fields(ModelConfig)}
    given = [fields.convert(known["qk_norm"], v, "it") for v in ("yes", "0", True, "False")]
    assert given == [True, False, True, False]
    with pytest.raises(UsageError, match="it takes true or false, not 'maybe'"):
        fields.convert(known["qk_norm"], "maybe", "it")


def test_a_config_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(MissingInputError, match="none.toml: no such file"):
        fields.collect({}, {}, tmp_path / "none.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        fields.collect({}, {}, tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match="not valid TOML"):
        fields.collect({}, {}, tmp_path / "latin.toml")
