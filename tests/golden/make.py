"""Makes the golden artifacts of the present formats: python tests/golden/make.py FORMAT_FOLDER

A tokenizer, a dataset, a run with two checkpoints and an eval, and `expected.json`: what they must
still give when a later lmcli reads them. Made once for each format version, never changed after.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CORPUS = "corpus.txt"
PROMPT = "All human beings"
COMMANDS = [
    ["tokenizer", "train", CORPUS, "--name", "tok", "--vocab-size", "300"],
    ["data", "build", CORPUS, "--tokenizer", "tok", "--name", "corpus"],
    [
        *("train", "--data", "corpus", "--name", "base", "--n-layers", "1", "--d-model", "8"),
        *("--n-heads", "2", "--context-length", "32", "--batch-size", "4", "--threads", "1"),
        *("--device", "cpu", "--dtype", "float32", "--dropout", "0.1", "--micro-batch-size", "2"),
        *("--steps", "400", "--warmup-steps", "5", "--lr", "0.02", "--schedule", "constant"),
        *("--save-every", "400", "--eval-every", "400", "--log-every", "50"),
    ],
    ["train", "--name", "base", "--steps", "500"],
]
EVAL = ["eval", "base", "--split", "test", "--json", "--device", "cpu", "--dtype", "float32"]
SAMPLE = [
    *("sample", "base", PROMPT, "--temperature", "0", "--max-new-tokens", "12"),
    *("--device", "cpu", "--dtype", "float32"),
]
EXTEND = ["train", "--name", "base", "--steps", "510"]


def lmcli(folder: Path, *line: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmcli", *line, "-q"]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def bits_per_byte(answer: str) -> float:
    """Out of what `lmcli eval --json` prints."""
    scores = json.loads(answer)["scores"]
    return float(next(score["value"] for score in scores if score["name"] == "bits_per_byte"))


def outcome(run: Path, step: int) -> dict[str, object]:
    """The bits of a run's checkpoint at a step, and the loss it ended with."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names))
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if "loss" in record]
    return {"sha256": digest.hexdigest(), "loss": losses[-1]}


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "".join((REPOSITORY / "data" / n).read_text()[:3000] for n in ("en.txt", "zh.txt"))
        (folder / CORPUS).write_text(text)
        for line in COMMANDS:
            lmcli(folder, *line)
        expected = {
            "bits_per_byte": bits_per_byte(lmcli(folder, *EVAL)),
            "greedy": lmcli(folder, *SAMPLE),
        }
        for lock in [*folder.rglob(".lock*"), *folder.rglob("LOCK")]:
            lock.unlink()
        shutil.copytree(folder / "artifacts", target)
        lmcli(folder, *EXTEND)
        run = folder / "artifacts" / "runs" / "base"
        made = json.loads((run / "checkpoints" / "step-000510" / "manifest.json").read_text())
        expected |= outcome(run, 510) | {
            k: made["made"][k] for k in ("torch", "cpu", "cpu_capability")
        }
        (target / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
