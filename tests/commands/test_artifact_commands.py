"""lmcli ls, show, status, verify, rm and doctor on a trained run, whole and damaged."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lmcli.artifacts import files, lock


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def change_status(root: Path, **values: object) -> None:
    path = root / "runs/base/status.json"
    files.write_sealed(path, {**files.read_sealed(path), **values})


def test_ls_lists_every_kind_and_its_state(cli, tiny_copy):
    table = cli("ls").out.splitlines()
    assert table[0].split() == ["kind", "name", "id", "size", "created", "state"]
    assert [line.split()[:2] for line in table[1:]] == [
        ["tokenizer", "tok"],
        ["dataset", "corpus"],
        ["run", "base"],
    ]
    assert table[3].endswith("finished at step 20")
    runs = json.loads(cli("ls", "runs", "--json").out)
    assert [r["name"] for r in runs] == ["base"] and len(runs[0]["id"]) == 64
    assert runs[0]["bytes"] == sum(
        p.stat().st_size for p in (tiny_copy / "runs/base").rglob("*") if p.is_file()
    )


def test_what_a_run_is_at_while_it_runs_is_what_it_logged(cli, tiny_copy):
    change_status(tiny_copy, state="running", step=5, exit=None, resumable=True)
    with lock.hold(tiny_copy / "runs/base/LOCK", "a test"):
        assert cli("ls").out.splitlines()[3].endswith("running at step 20")
    assert cli("ls").out.splitlines()[3].endswith("interrupted at step 5")
    status = json.loads(cli("status", "base", "--json").out)
    assert (status["step"], status["logged_step"]) == (5, 20)


def test_ls_goes_on_where_an_artifact_is_broken(cli, tiny_copy):
    (tiny_copy / "tokenizers/tok/manifest.json").write_text("{")
    (tiny_copy / "runs/base/status.json").write_text("{")
    states = {r["name"]: r["state"] for r in json.loads(cli("ls", "--json").out)}
    assert states == {"tok": "broken", "corpus": "", "base": "broken"}
    assert "broken" in cli("ls").out


def test_ls_of_nothing_says_where_to_start(cli, root):
    result = cli("ls")
    assert result.code == 0 and result.out == "" and "lmcli quickstart" in result.err
    assert json.loads(cli("ls", "--json").out) == []


def test_show_names_the_lineage(cli, tiny_copy):
    shown = cli("show", "base").out
    for text in (
        "datasets/corpus (",
        "tokenizers/tok (",
        "finished at step 20 of 20",
        "d_model=32",
    ):
        assert text in shown
    facts = json.loads(cli("show", "base", "--json").out)
    assert facts["parents"]["tokenizer"]["name"] == "tokenizers/tok"
    assert facts["checkpoints"]["steps"][-1] == 20 and facts["checkpoints"]["best"] in (10, 20)
    assert facts["config"]["model"]["vocab_size"] == 320
    assert facts["status"]["val_loss"] > 0
    files.remove(tiny_copy / "tokenizers/tok")
    assert "not under this root" in cli("show", "base").out
    assert "vocab_size" in cli("show", "datasets/corpus").out
    step = f"{tiny_copy}/runs/base/checkpoints/step-000020"
    assert json.loads(cli("show", step, "--json").out)["kind"] == "checkpoint"


def test_a_running_run_that_nobody_holds_is_interrupted(cli, tiny_copy):
    change_status(tiny_copy, state="running", exit=None, resumable=True)
    status = json.loads(cli("status", "base", "--json").out)
    assert status["state"] == "interrupted" and status["resumable"] is True
    assert "process is gone" in status["reason"] and status["loss"] > 0
    with lock.hold(tiny_copy / "runs/base/LOCK", "a test"):
        assert cli("status", "base", "--field", "state").out == "running\n"
    assert cli("status", "base", "--field", "resumable").out == "true\n"
    wrong = cli("status", "base", "--field", "stat")
    assert wrong.code == 2 and "did you mean 'state'?" in wrong.err


def test_status_is_for_runs(cli, tiny_copy):
    result = cli("status", f"{tiny_copy}/datasets/corpus")
    assert result.code == 78 and "is a dataset, not a run" in result.err
    assert cli("status", "corpus").code == 66


def test_verify_counts_what_it_read(cli, tiny_copy):
    for name in ("tok", "corpus", "base"):
        result = cli("verify", name)
        assert result.code == 0 and result.out.startswith("ok: "), result
    steps = json.loads(cli("show", "base", "--json").out)["checkpoints"]["steps"]
    # config and tokenizer; weights, optimizer and state of each checkpoint
    assert json.loads(cli("verify", "base", "--json").out)["files"] == 2 + 3 * len(steps)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda r: flip(r / "tokenizer.json"), "tokenizer.json: content differs"),
        (lambda r: (r / "config.json").unlink(), "config.json: missing"),
        (lambda r: flip(r / "checkpoints/step-000020/model.safetensors"), "model.safetensors: "),
        (lambda r: (r / "checkpoints/step-000020/state.json").unlink(), "state.json: missing"),
        (lambda r: flip(r / "metrics.jsonl", 10), "are not what step-0000"),
        (lambda r: (r / "metrics.jsonl").write_bytes(b""), "are not what step-0000"),
        (lambda r: (r / "status.json").write_text("{"), "status.json: not valid JSON"),
        (lambda r: (r / "events.jsonl").write_text("{\n"), "events.jsonl:1: not valid JSON"),
        (lambda r: (r / "notes.txt").write_text("x"), "notes.txt: not written by lmcli"),
        (lambda r: (r / "checkpoints/step-000020/x").write_text("x"), "x: not listed"),
    ],
)
def test_verify_prints_each_problem_and_exits_65(cli, tiny_copy, damage, says):
    damage(tiny_copy / "runs/base")
    result = cli("verify", "base")
    assert result.code == 65 and says in result.out and "problem(s)" in result.err


def test_verify_names_all_problems_at_once(cli, tiny_copy):
    for name in ("train.bin", "val.idx"):
        path = tiny_copy / "datasets/corpus" / name
        path.write_bytes(path.read_bytes()[:-1])
    problems = json.loads(cli("verify", "corpus", "--json").out)["problems"]
    assert [Path(p.split(":")[0]).name for p in problems] == ["train.bin", "val.idx"]


def test_what_came_from_an_artifact_that_force_replaces_is_named(cli, tiny_copy, tmp_path):
    (tmp_path / "other.txt").write_text("other text\n" * 99)
    build = ["data", "build", tmp_path / "other.txt", "--tokenizer", "tok", "--name", "corpus"]
    said = cli(*build, "--force", "-q")
    assert said.code == 0 and "the old corpus, which runs/base came from, is in" in said.err
    again = cli(*build, "--force", "-q")
    assert again.code == 0 and again.err == ""
    both = cli("rm", "corpus", "corpus")
    assert both.code == 0 and "no dataset" not in both.err


def test_rm_keeps_parents_in_use_and_moves_the_rest_to_the_trash(cli, tiny_copy):
    for name, users in (("tok", "datasets/corpus, runs/base"), ("corpus", "runs/base")):
        refused = cli("rm", name)
        assert refused.code == 77 and f"is a parent of {users}" in refused.err
    gone = cli("rm", "base")
    assert gone.code == 0 and ".trash/runs-base-0" in gone.err and gone.out == ""
    assert (tiny_copy / ".trash/runs-base-0/manifest.json").exists()
    assert cli("rm", "corpus", "tok").code == 0 and cli("ls").out == ""
    # what a killed --empty-trash left is removed too
    (tiny_copy / ".tmp-gone-.trash").mkdir()
    assert cli("rm", "--empty-trash").code == 0
    assert not list(tiny_copy.glob(".t*"))


def test_rm_refuses_while_another_process_holds_the_run(cli, tiny_copy):
    code = (
        "import sys; from pathlib import Path; from lmcli.artifacts import lock\n"
        "with lock.hold(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tiny_copy / "runs/base/LOCK"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        holder.stdout.readline()
        result = cli("rm", "base")
        holder.communicate()
    assert result.code == 76 and f"process {holder.pid} on " in result.err
    assert (tiny_copy / "runs/base").is_dir()


def test_rm_takes_broken_artifacts_but_no_other_folder(cli, tiny_copy):
    (tiny_copy / "runs/base/manifest.json").unlink()
    assert cli("rm", "base").code == 0
    Path("letters").mkdir()
    for reference in ("./letters", "./"):
        refused = cli("rm", reference)
        assert refused.code == 2 and "is not an artifact" in refused.err
    assert Path("letters").is_dir()
    assert cli("rm", f"{tiny_copy}/datasets/corpus").code == 0
    assert (tiny_copy / ".trash/datasets-corpus-0").is_dir()


def test_doctor_says_what_it_found_and_what_it_would_choose(cli, root):
    facts = json.loads(cli("doctor", "--json").out)
    assert facts["locks and fsync"] == "work here" and facts["chosen"].startswith(
        ("cpu, ", "cuda, ", "mps, ")
    )
    assert facts["torch"][0].isdigit() and facts["cores"] >= 1
    assert not list(root.parent.iterdir())
    assert cli("doctor").out.count("\n") == len(facts)
    needed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {line.partition(">")[0] for line in needed["dependencies"]} <= facts.keys()


def test_rm_takes_whole_artifacts_and_keeps_a_damaged_parent(cli, tiny_copy):
    part = cli("rm", f"{tiny_copy}/runs/base/checkpoints/step-000020")
    assert part.code == 2 and "is checkpoint; nothing was moved" in part.err
    (tiny_copy / "datasets/corpus/train.bin").write_bytes(b"")
    assert cli("rm", "datasets/corpus").code == 77
    shutil.copytree(tiny_copy / "datasets/corpus", tiny_copy / "datasets/broken-twin")
    shutil.copytree(tiny_copy / "tokenizers/tok", tiny_copy / "tokenizers/twin")
    assert cli("rm", "tokenizers/tok").code == 0 and cli("rm", "tokenizers/twin").code == 77
