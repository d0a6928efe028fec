"""Python functions and what their authors say they do: pairs that every machine has."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def functions(files: Iterable[Path]) -> Iterator[dict[str, str]]:
    """`source`, a function without its docstring, and `target`, that docstring's first line.

    Files that are no Python are passed over; equal pairs come once.
    """
    seen: set[tuple[str, str]] = set()
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        lines = text.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            told = (ast.get_docstring(node) or "").strip().partition("\n")[0].strip()
            if len(told.split()) < 3 or len(node.body) < 2:
                continue
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno or 0
            kept = lines[node.lineno - 1 : first] + lines[last : node.end_lineno]
            indent = len(kept[0]) - len(kept[0].lstrip())
            source = "\n".join(line[indent:] for line in kept if line.strip())
            if (source, told) not in seen:
                seen.add((source, told))
                yield {"source": source, "target": told}
