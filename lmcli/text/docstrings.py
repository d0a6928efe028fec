"""Python functions and what their authors say they do: pairs that every machine has."""

import ast
import warnings
from collections.abc import Iterable, Iterator


def functions(texts: Iterable[str]) -> Iterator[dict[str, str]]:
    """`source`, a function without its docstring, and `target`, that docstring's first line.

    Texts that are no Python are passed over; equal pairs come once.
    """
    seen: set[tuple[str, str]] = set()
    for text in texts:
        try:
            with warnings.catch_warnings():  # what is odd about the code is not ours to say
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        lines = text.splitlines()
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
