"""Side by side with JoeyNMT: training and beam search on Multi30k English to German, interleaved.

    LMCLI_TEST_DATA=... python benchmarks/joeynmt.py --joeynmt-python ENVIRONMENT/bin/python

JoeyNMT 2.3 lives in an environment of its own (docs/benchmarks.md has its recipe); nothing of it is
imported here. One shape (Transformer-Tiny), one vocabulary, the same ids: lmcli's tokenizer cuts
the text once and JoeyNMT reads the ids as words. In each round both train for a number of updates,
and both translate test_2016_flickr with the same weights, those of one lmcli run under JoeyNMT's
names; how many translations are equal is printed, so that the two are known to do the same work.

Training is counted in target tokens, `<eos>` included, by each program's own log without its first
20 updates (so `--updates` is a multiple of 10, above 20). Sentences per second are those of the
whole process less a run on one sentence.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY, BEAMS, WARM, LOG_EVERY = 10000, 5, 20, 10
SPLITS, SIDES = ("train", "val", "test_2016_flickr"), ("en", "de")
SHAPE = ["--preset", "transformer-tiny", "--dropout", 0.3, "--norm-eps", 1e-6]
QUIET = ["--eval-every", 0, "--save-every", 0, "--log-every", LOG_EVERY]  # nothing but training
SPECIALS = ["<unk>", "<pad>", "<s>", "</s>"]  # ids 0 to 3 in JoeyNMT's order


def run(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command with its output; its errors are shown where it fails."""
    line = [str(w) for w in words]
    done = subprocess.run(line, input=stdin, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def lmcli(*words: object, stdin: str = "") -> str:
    return run(sys.executable, "-m", "lmcli", *words, stdin=stdin).stdout


def prepare(data: Path, work: Path) -> int:
    """The tokenizer, the dataset, the same as files of ids; returns the size of the vocabulary."""
    files = {f"{split}.{side}": data / f"{split}.{side}" for split in SPLITS for side in SIDES}
    train = [files["train.en"], files["train.de"]]
    lmcli("tokenizer", "train", *train, "--name", "joint", "--vocab-size", VOCABULARY)
    flags = []
    for prefix, split in zip(("", "val-", "test-"), SPLITS, strict=True):
        flags += [f"--{prefix}source", files[f"{split}.en"]]
        flags += [f"--{prefix}target", files[f"{split}.de"]]
    lmcli("data", "build", *flags, "--on-error", "skip", "--tokenizer", "joint", "--name", "pairs")
    for name, file in files.items():
        ids = lmcli("tokenizer", "encode", "joint", stdin=file.read_text("utf-8"))
        (work / name).write_text(ids)
    size = json.loads(lmcli("tokenizer", "info", "joint", "--json"))["vocab_size"]
    (work / "vocab.txt").write_text("\n".join([*SPECIALS, *map(str, range(4, size))]) + "\n")
    return int(size)


def settings(work: Path, updates: int, batch_tokens: int, batch_size: int) -> dict[str, Any]:
    """JoeyNMT's configuration: lmcli's preset in its words."""
    side = {"level": "word", "voc_file": str(work / "vocab.txt")}
    stack = {
        "type": "transformer",
        "num_layers": 4,
        "num_heads": 4,
        "embeddings": {"embedding_dim": 128, "scale": True},
        "hidden_size": 128,
        "ff_size": 256,
        "dropout": 0.3,
        "layer_norm": "post",
    }
    return {
        "name": "tiny",
        "model_dir": str(work / "joeynmt"),
        "use_cuda": False,
        "data": {
            "train": str(work / "train"),
            "dev": str(work / "val"),
            "dataset_type": "plain",
            "src": {"lang": "en", **side},
            "trg": {"lang": "de", **side},
        },
        "testing": {
            "load_model": str(work / "weights.ckpt"),
            "beam_size": BEAMS,
            "beam_alpha": 0,
            "batch_size": batch_size,
            "batch_type": "sentence",
        },
        "training": {
            "optimizer": "adam",
            "adam_betas": [0.9, 0.98],
            "scheduling": "noam",
            "learning_rate_warmup": 2000,
            "learning_rate_min": 0.0,
            "normalization": "tokens",
            "label_smoothing": 0.1,
            "batch_size": batch_tokens,
            "batch_type": "token",
            "epochs": 1000,
            "updates": updates,
            "validation_freq": 10 * updates,
            "logging_freq": LOG_EVERY,
            "overwrite": True,
        },
        "model": {
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": stack,
            "decoder": stack,
        },
    }


def rename(checkpoint: Path, out: Path) -> None:
    """The weights of a checkpoint of lmcli as a checkpoint of JoeyNMT, for `tied_softmax` false."""
    import torch
    from safetensors.torch import load_file

    from lmcli.model.transformer import sinusoids

    weights = load_file(checkpoint / "model.safetensors")
    parts = {
        "encoder": {"attn": "src_src_att", "attn_norm": "layer_norm"},
        "decoder": {
            "attn": "trg_trg_att",
            "attn_norm": "x_layer_norm",
            "cross_attn": "src_trg_att",
            "cross_norm": "dec_layer_norm",
        },
    }
    both = {"mlp_norm": "feed_forward.layer_norm", "mlp": "feed_forward.pwff_layer"}
    layers = {"q_proj": "q_layer", "k_proj": "k_layer", "v_proj": "v_layer"}
    layers |= {"o_proj": "output_layer", "up": "0", "down": "3"}
    state = {}
    for name, tensor in weights.items():
        stack, *path = name.split(".")
        if stack in parts:
            names = {"blocks": "layers", **parts[stack], **both, **layers}
            state[".".join([stack, *(names.get(word, word) for word in path)])] = tensor
    # <unk> takes the row of <sep>, which never occurs; then <pad>, and <eos> as start and as end.
    rows = weights["embed.weight"]
    rows = torch.cat((rows[[3, 0, 2, 2]], rows[4:]))
    state["src_embed.lut.weight"] = state["trg_embed.lut.weight"] = rows
    state["decoder.output_layer.weight"] = rows.clone()
    state["decoder.output_layer.weight"][2] = 0.0  # <s> is not to take half of </s>'s probability
    table = sinusoids(torch.arange(5000)[None], rows.shape[1])
    state |= {"encoder.pe.pe": table, "decoder.pe.pe": table}
    torch.save({"model_state": state}, out)


def train_lmcli(work: Path, batch_tokens: int, updates: int) -> float:
    """Target tokens per second by the log, after WARM updates."""
    flags = ["--batch-tokens", batch_tokens, "--steps", updates]
    lmcli("train", "--data", "pairs", "--name", "speed", "--force", *SHAPE, *QUIET, *flags)
    at: dict[int, dict[str, float]] = {}
    for file in ("metrics.jsonl", "perf.jsonl"):
        for row in map(json.loads, (work / "runs/speed" / file).read_text().splitlines()):
            if row.keys() & {"loss", "tokens_per_second"}:  # not of a validation or save
                at.setdefault(row["step"], {}).update(row)
    first, last = at[WARM], at[updates]
    return (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


def train_joeynmt(command: list[object], config: Path) -> float:
    """The same; each window of its log has about as many tokens."""
    log = run(*command, "train", config, "--skip-test").stderr
    windows = re.findall(r"Step: +(\d+), .* Tokens per Sec: +(\d+)", log)
    return statistics.harmonic_mean([float(rate) for step, rate in windows if int(step) > WARM])


def translate(command: list[object], text: str) -> tuple[float, list[str]]:
    """Sentences per second without the start of the process, and the translations."""
    n, first = text.count("\n"), text[: text.index("\n") + 1]
    began = time.perf_counter()
    run(*command, stdin=first)
    started = time.perf_counter()
    lines = run(*command, stdin=text).stdout.split("\n")[:-1]
    ended = time.perf_counter()
    return (n - 1) / ((ended - started) - (started - began)), lines[-n:]


def report(what: str, ours: list[float], theirs: list[float]) -> None:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    for name, values in (("lmcli", ours), ("JoeyNMT", theirs), ("ratio", ratios)):
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{what:<24}{name:<9}{middle:>9,.2f}  ({low:,.2f} to {high:,.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--joeynmt-python", required=True, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=80, help="of training in a round")
    parser.add_argument("--run-updates", type=int, default=1500, help="before decoding, once")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--joeynmt-batch-tokens", type=int, help="if not the same number")
    parser.add_argument("--batch-size", type=int, default=128, help="sentences decoded together")
    parser.add_argument("--joeynmt-batch-size", type=int, default=16, help="small ones suit it")
    parser.add_argument("--work", type=Path, default=Path("artifacts/joeynmt"))
    options = parser.parse_args()
    if "LMCLI_TEST_DATA" not in os.environ:
        sys.exit("set LMCLI_TEST_DATA to the folder of corpora that has multi30k/")
    data, work = Path(os.environ["LMCLI_TEST_DATA"]).resolve() / "multi30k", options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    threads = len(os.sched_getaffinity(0))  # lmcli takes as many by itself
    os.environ |= {"LMCLI_ARTIFACTS": str(work), "OMP_NUM_THREADS": str(threads)}

    size = prepare(data, work)
    flags = [*SHAPE, *QUIET, "--batch-tokens", options.batch_tokens]
    lmcli("train", "--data", "pairs", "--name", "tiny", *flags, "--steps", options.run_updates)
    rename(max((work / "runs/tiny/checkpoints").glob("step-*")), work / "weights.ckpt")
    theirs = [options.joeynmt_python, "-P", "-m", "joeynmt"]  # -P: not this file
    batch_tokens = options.joeynmt_batch_tokens or options.batch_tokens
    config = settings(work, options.updates, batch_tokens, options.joeynmt_batch_size)
    (work / "train.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML
    config["model"]["tied_softmax"] = False
    (work / "translate.yaml").write_text(json.dumps(config, indent=1))

    search = ["--num-beams", BEAMS, "--length-penalty", 0, "--batch-size", options.batch_size]
    text = (data / "test_2016_flickr.en").read_text("utf-8")
    ids = (work / "test_2016_flickr.en").read_text()
    trainers = (
        lambda: train_lmcli(work, options.batch_tokens, options.updates),
        lambda: train_joeynmt(theirs, work / "train.yaml"),
    )
    translators = (
        lambda: translate([sys.executable, "-m", "lmcli", "sample", "tiny", *search], text),
        lambda: translate([*theirs, "translate", work / "translate.yaml"], ids),
    )
    tokens: tuple[list[float], list[float]] = ([], [])
    sentences: tuple[list[float], list[float]] = ([], [])
    outputs: list[list[str]] = [[], []]
    for number in range(options.rounds):
        for who in (0, 1) if number % 2 == 0 else (1, 0):
            tokens[who].append(trainers[who]())
        for who in (0, 1) if number % 2 == 0 else (1, 0):
            rate, outputs[who] = translators[who]()
            sentences[who].append(rate)
        found = [f"{a[-1]:,.1f} and {b[-1]:,.1f}" for a, b in (tokens, sentences)]
        print(f"round {number + 1}: {found[0]} tokens/s, {found[1]} sentences/s", file=sys.stderr)
    print(f"{options.rounds} rounds, {threads} threads, vocabulary {size:,}: median (range)")
    report("training, tokens/s", *tokens)
    report(f"beam {BEAMS}, sentences/s", *sentences)
    words = "\n".join(outputs[1]).replace("<unk>", "3")
    decoded = lmcli("tokenizer", "decode", "joint", stdin=words + "\n").split("\n")
    equal = sum(a == b for a, b in zip(outputs[0], decoded, strict=False))
    print(f"{equal} of {len(outputs[0])} translations are equal")


if __name__ == "__main__":
    main()
