"""What stands around a source where no template is given."""

import pytest

from lmcli.text import tasks
from lmcli.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def foreign() -> Tokenizer:
    """A tokenizer without `<sep>`."""
    own = Tokenizer.train(["x"], None, "byte")
    return Tokenizer(own._inner, {role: t for role, t in own.roles.items() if role != "sep"})


def prompt(text: str, tokenizer: Tokenizer) -> str:
    template = tasks.Template.parse(text, tokenizer)
    return tokenizer.decode(template.prompt(tokenizer.encode("SOURCE")))


@pytest.mark.parametrize(
    ("task", "text"), [(None, "SOURCE\n"), ("code", "SOURCE\n"), ("qa", "SOURCE\nAnswer:")]
)
def test_without_sep_words_or_a_line_end_keep_source_and_target_apart(foreign, task, text):
    assert prompt(tasks.template("decoder", task, foreign), foreign) == text


def test_a_chat_is_asked_with_the_line_end_before_its_replies(foreign):
    chat = {"user": "U: {content}\n", "assistant": "A:\n{content}<eos>"}
    assert prompt(tasks.template("decoder", "chat", foreign, chat), foreign) == "U: SOURCE\nA:\n"


def test_the_last_line_end_of_a_file_is_no_part_of_it(foreign):
    assert prompt("Q: {source} A:\n", foreign) == prompt("Q: {source} A:{target}\n", foreign)
