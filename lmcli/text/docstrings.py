"""Python functions and what their authors say they do: pairs that every machine has."""

import ast
import io
import warnings
from collections.abc import Iterable, Iterator


def parsed(text: str) -> ast.Module | None:
    """A program, or None for what is not one."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd about it is not ours to say
            return ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def functions(texts: Iterable[str]) -> Iterator[dict[str, str]]:
    """`source`, a function without its docstring, and `target`, that docstring's first line.

    Texts that are no Python are passed over; equal pairs come once.
    """
    seen: set[tuple[str, str]] = set()
    for text in texts:
        if (tree := parsed(text)) is None:
            continue
        lines = io.StringIO(text, newline=None).read().split("\n")  # which a form feed ends none of
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
                continue
            told = (ast.get_docstring(node) or "").strip().partition("\n")[0].strip()
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno or 0
            kept = lines[node.lineno - 1 : first] + lines[last : node.end_lineno]
            if len(told.split()) < 3 or not kept:
                continue
            indent = len(kept[0]) - len(kept[0].lstrip())
            source = "\n".join(line[indent:] for line in kept if line.strip())
            if (source, told) not in seen:
                seen.add((source, told))
                yield {"source": source, "target": told}
