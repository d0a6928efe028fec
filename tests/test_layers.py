"""The rooms and who may import whom (docs/architecture.md), read from every file's imports."""

import ast
import re
from pathlib import Path

import lmcli

PACKAGE = Path(lmcli.__file__).parent
GROUND = {"config", "errors", "artifacts", "console", "randomness", "signals", ""}
MAY = {
    "errors": set(),
    "randomness": set(),
    "signals": set(),
    "config": {"errors", "config"},
    "artifacts": GROUND,
    "console": GROUND,
    "text": GROUND,
    "dataset": GROUND | {"text"},
    "model": GROUND,
    "metrics": GROUND,
    "report": GROUND,
    "inference": GROUND | {"model"},
    "training": GROUND | {"model", "dataset"},
    "evaluation": GROUND | {"inference", "metrics", "text", "dataset"},
    "interop": GROUND | {"model", "text"},
    "runs": GROUND
    | {
        "runs",
        "training",
        "evaluation",
        "interop",
        "dataset",
        "text",
        "model",
        "inference",
        "metrics",
    },
    "commands": GROUND
    | {"runs", "text", "dataset", "metrics", "report", "commands", "cli", "training"}
    | {"evaluation"},
    "cli": {"commands", "errors", "config", "console", ""},
    "__main__": {"cli"},
    "": set(),
}
HEAVY = {"torch", "numpy", "rich", "tokenizers", "safetensors", "sacrebleu", "nltk"}
NO_TORCH = {"text", "dataset", "metrics", "report", "config", "artifacts", "console", "errors"}


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path):
    """(imported module, whether at the top level) of a file; `from lmcli import x` is lmcli.x."""
    tree = ast.parse(path.read_text())
    top = {id(n) for n in tree.body}
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in block.body
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module in ("lmcli", "lmcli.artifacts", "lmcli.config"):
                names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            yield name, id(node) in top, id(node) in typing_only


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("lmcli", *path.relative_to(PACKAGE).with_suffix("").parts))
        yield path, room(module.removesuffix(".__init__"))


def test_every_import_follows_the_table():
    for path, here in files():
        allowed = MAY[here] | {here}
        for name, _, _ in imports(path):
            if name.split(".")[0] == "lmcli" and name != "lmcli.__version__":
                there = room(name)
                assert there in allowed, f"{path}: {here} may not import {name}"


def test_rooms_without_torch_have_none():
    for path, here in files():
        if here in NO_TORCH:
            assert not any(n.split(".")[0] == "torch" for n, _, _ in imports(path)), path


def test_commands_import_heavy_things_inside_functions_only():
    light = GROUND | {"commands", "cli"}
    for path, here in files():
        if here not in ("commands", "cli", "config", "errors", "__main__", ""):
            continue
        for name, at_top, typing_only in imports(path):
            if at_top and not typing_only:
                assert name.split(".")[0] not in HEAVY, f"{path} imports {name}"
                ours = name.split(".")[0] == "lmcli" and name != "lmcli.__version__"
                assert not ours or room(name) in light, f"{path}: {name}"


def test_nothing_loads_pickles_or_runs_text_as_code():
    banned = re.compile(r"\bpickle\b|torch\.load|torch\.save|\beval\(|\bexec\(|shell=True|np\.load")
    for path, _ in files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.replace(".eval()", "")
            if path.name == "inside.py":  # what the sandbox is for
                code = code.replace("exec(compile(", "")
            assert not banned.search(code), f"{path}:{number}: {line}"


def test_files_read_in_one_sitting():
    for path, _ in files():
        assert len(path.read_text().splitlines()) <= 400, path
