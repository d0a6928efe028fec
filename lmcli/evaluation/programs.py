"""Problems with tests, as HumanEval has them, and the verdicts on completions of their prompts."""

import ast
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from lmcli import console
from lmcli.config.scoring import ScoringConfig
from lmcli.config.units import parse_duration
from lmcli.errors import DataError, RefusedError, UsageError
from lmcli.evaluation.sandbox import Limits, Verdict, run
from lmcli.text.docstrings import parsed
from lmcli.text.segments import Source


def judge(
    problems: Source, completions: Source, config: ScoringConfig, k: int
) -> list[list[Verdict]]:
    """For each problem a verdict on each of its n completions, which stand next to each other."""
    n, rest = divmod(len(completions.rows), len(problems.rows))
    if rest:
        counts = f"{len(problems.rows)} problems, {len(completions.rows)} in {completions.name}"
        raise DataError(f"not the same number of completions of each problem: {counts}")
    if k > n:
        raise UsageError(f"pass@{k} takes {k} completions of each problem; there are {n}")
    if config.weak_sandbox:
        console.warn("--weak-sandbox: the programs run with your own rights, under limits alone")
    texts = completions.segments(config.hyp_key or "completion", single=True)
    written, verdicts = [text for [text] in texts], []
    with console.Progress("running", len(written), "programs") as progress:
        for verdict in verdicts_on(problems, written, config):
            verdicts.append(verdict)
            progress.update(len(verdicts))
    counted = Counter(verdict.reason for verdict in verdicts).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counted)
    console.say(f"{completions.name}: {len(verdicts)} programs, {reasons}")
    return [verdicts[i : i + n] for i in range(0, len(verdicts), n)]


def verdicts_on(problems: Source, texts: list[str], config: ScoringConfig) -> Iterator[Verdict]:
    """Whether prompt and completion together pass the problem's tests, in order.

    They run in parallel on the cores there are.
    """
    if sys.platform != "linux":
        raise RefusedError("programs are run on Linux only, where there is a sandbox for them")
    limits = Limits(parse_duration(config.timeout))
    if not limits.seconds:
        raise UsageError("--timeout must be above 0s")
    n = len(texts) // len(problems.rows)
    known = [problem for problem in _read(problems, config.ref_key or "test") for _ in range(n)]
    programs = [prompt + text for (prompt, _), text in zip(known, texts, strict=True)]
    tests = [test for _, test in known]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(run, programs, tests, repeat(limits), repeat(config.weak_sandbox))


def _read(source: Source, key: str) -> list[tuple[str, str]]:
    """The prompt and the tests of each problem."""
    if not source.keyed:
        raise DataError(f"{source.name}: problems are JSONL with fields prompt and {key}")
    problems = []
    for (where, record), lines in zip(source.rows, source.segments(key), strict=True):
        prompt, entry = record.get("prompt", ""), record.get("entry_point", "")
        if not isinstance(prompt, str) or not isinstance(entry, str):
            raise DataError(f"{where}: fields 'prompt' and 'entry_point' must be text")
        tests = "\n".join([_shared(prompt), *lines])
        if entry and re.search(r"^def check\(", tests, re.MULTILINE):
            tests += f"\ncheck({entry})"
        if parsed(tests) is None:
            raise DataError(f"{where}: field {key!r} does not compile")
        problems.append((prompt, tests))
    return problems


def _shared(prompt: str) -> str:
    """What tests may use of a prompt: its imports and functions, but for what is to be completed.

    They run as the problem has them, whatever a completion makes of them. Its classes do not:
    tests hand their objects to the program.
    """
    tree = parsed(prompt + "\n    pass") or parsed(prompt) or ast.Module([], [])
    if tree.body and isinstance(tree.body[-1], ast.FunctionDef):
        tree.body.pop()
    tree.body = [each for each in tree.body if not isinstance(each, ast.ClassDef)]
    return ast.unparse(tree)
