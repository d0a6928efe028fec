"""Ten minutes of nanoGPT and of the Hugging Face Trainer on what benchmarks/corpora.py trained on.

    LMCLI_TEST_DATA=... python benchmarks/corpora.py wikitext-2
    python benchmarks/wikitext.py --nanogpt CHECKOUT [--minutes 10] [--rivals nanogpt,trainer]

They get the dataset, layers, width, context and batch of lmcli's run, their own model, AdamW at
nanoGPT's 1e-3 with weight decay 0.1, and a cosine that ends with the minutes: nanoGPT's follows the
clock, the Trainer's the steps that a trial says will fit. `nanogpt` is float32 and eager, as its
README runs it on a CPU; `nanogpt-tuned` has autocast and compile turned on by hand. All score the
whole validation split once, in windows that do not overlap, as `lmcli eval` does.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmcli.dataset.store import Dataset
from lmcli.evaluation.evaluate import windows

RATE, DECAY, WARMUP = 1e-3, 0.1, 100


class Task:
    """What lmcli's run was given: data, and the shape of model and batch."""

    def __init__(self, artifacts: Path) -> None:
        config = json.loads((artifacts / "runs/wikitext-2/config.json").read_text())
        self.model, self.batch_size = config["model"], config["training"]["batch_size"]
        self.context = self.model["context_length"]
        data = Dataset.open(artifacts / "datasets/wikitext-2")
        self.train, self.val = (np.asarray(data.splits[s].tokens) for s in ("train", "val"))
        self.documents = [
            data.splits["val"].document(i) for i in range(data.splits["val"].n_documents)
        ]
        self.n_bytes = data.manifest.config["splits"]["val"]["bytes"]
        self.eos_id = int(self.train[-1])

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows, as nanoGPT draws them."""
        at = torch.randint(len(self.train) - self.context, (self.batch_size,))
        rows = np.stack([self.train[i : i + self.context + 1] for i in at.tolist()])
        both = torch.from_numpy(rows.astype(np.int64))
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def bits_per_byte(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, int]:
        """Of the whole split, and how many tokens were scored."""
        nats, tokens = 0.0, 0
        for ids in self.documents:
            for window in windows(ids, self.eos_id, self.context, self.context):
                x = torch.tensor([[window.before, *window.ids[:-1].tolist()]])
                y = torch.from_numpy(window.ids)
                with torch.no_grad():
                    nats += torch.nn.functional.cross_entropy(
                        logits(x)[0], y, reduction="sum"
                    ).item()
                tokens += len(y)
        return nats / math.log(2) / self.n_bytes, tokens


def nanogpt(task: Task, seconds: float, checkout: str, tuned: bool) -> dict[str, Any]:
    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig  # nanoGPT's

    shape = [
        task.model[k] for k in ("context_length", "vocab_size", "n_layers", "n_heads", "d_model")
    ]
    torch.manual_seed(1337)
    model = GPT(GPTConfig(*shape, 0.0, False))
    optimizer = model.configure_optimizers(DECAY, RATE, (0.9, 0.95), "cpu")
    compute = torch.compile(model) if tuned else model
    steps, began = 0, time.perf_counter()
    while (share := (time.perf_counter() - began) / seconds) < 1:
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(cosine, (steps + 1) / WARMUP)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            _, loss = compute(*task.batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    model.eval()
    bits, tokens = task.bits_per_byte(lambda x: model(x, x)[0])
    return {"bits": bits, "tokens": tokens, "steps": steps, "seconds": seconds}


class Windows(torch.utils.data.IterableDataset):
    def __init__(self, task: Task) -> None:
        self.task = task

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            for row in self.task.batch()[0]:
                yield {"input_ids": row, "labels": row}


def trainer(task: Task, seconds: float) -> dict[str, Any]:
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    names = {"n_positions": "context_length", "n_embd": "d_model", "n_layer": "n_layers"}
    size = {"vocab_size": "vocab_size", "n_head": "n_heads", **names}
    config = GPT2Config(**{theirs: task.model[ours] for theirs, ours in size.items()}, **none)
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": WARMUP, "adam_beta2": 0.95}

    def train(steps: int) -> tuple[Any, float]:
        torch.manual_seed(1337)
        model = GPT2LMHeadModel(config)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=task.batch_size,
                max_steps=steps,
                learning_rate=RATE,
                weight_decay=DECAY,
                bf16=True,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                **schedule,
            )
            began = time.perf_counter()
            Trainer(model, arguments, train_dataset=Windows(task)).train()
            return model, time.perf_counter() - began

    trial = 20
    steps = int(seconds / (train(trial)[1] / trial))
    model, took = train(steps)
    model.eval()
    bits, tokens = task.bits_per_byte(lambda x: model(x).logits)
    return {"bits": bits, "tokens": tokens, "steps": steps, "seconds": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", default="", help="checkout of nanoGPT")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rivals", default="nanogpt,nanogpt-tuned,trainer")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts/benchmarks"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        task, out = Task(args.artifacts), sys.stdout
        sys.stdout = sys.stderr
        if args.child == "trainer":
            found = trainer(task, 60 * args.minutes)
        else:
            found = nanogpt(task, 60 * args.minutes, args.nanogpt, args.child == "nanogpt-tuned")
        print(json.dumps(found), file=out)
        return
    print("| | bits per byte | tokens scored | steps | seconds |\n| --- | --- | --- | --- | --- |")
    for name in args.rivals.split(","):
        line = [sys.executable, __file__, *sys.argv[1:], "--child", name]
        said = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
        f = json.loads(said)
        row = (
            f"| {name} | {f['bits']:.3f} | {f['tokens']:,} | {f['steps']:,} | {f['seconds']:.0f} |"
        )
        print(row, flush=True)


if __name__ == "__main__":
    main()
