"""Functions and the first lines of their docstrings."""

from lmcli.text.docstrings import functions

DOUBLE = 'def double(n):\n    """Twice the number."""\n    return 2 * n\n'
PAIR = {"source": "def double(n):\n    return 2 * n", "target": "Twice the number."}


def test_a_function_comes_without_its_docstring_and_once():
    assert list(functions([DOUBLE, "no Python (", DOUBLE])) == [PAIR]


def test_lines_are_those_that_python_counts():
    """A form feed, as between the parts of old modules, ends no line."""
    assert list(functions([f'"""a\x0cb\u2028c"""\r\n\x0c\n{DOUBLE}'])) == [PAIR]
