"""Training steps side by side with nanoGPT and the Hugging Face Trainer, interleaved in one run.

    python benchmarks/train.py --nanogpt CHECKOUT [--shapes a,b,c] [--rounds 5]
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/train.py --nanogpt CHECKOUT --rivals nanogpt
    python benchmarks/train.py --nanogpt CHECKOUT --device cuda --shapes d --rivals nanogpt-tuned
    python benchmarks/train.py --nanogpt CHECKOUT --device cuda --shapes e --rivals matmuls

nanoGPT is imported from a checkout (git clone https://github.com/karpathy/nanoGPT), trained as its
train.py does on a CPU: float32, eager. `nanogpt-tuned` is the same with autocast to bfloat16 and
torch.compile, turned on by hand; `trainer` is transformers' Trainer with bf16. Each program lives
in a process of its own, which waits while the others run. In each round each of them takes steps
for about `--seconds`; the tokens per second of lmcli over those of a rival give one ratio a round.

All train a GPT-2 without biases of one shape, batch and vocabulary, on random tokens. `share` is
the share that lmcli reaches of what the matrix products of its step alone allow: forward, gradient
of inputs and of weights, each in the faster of bfloat16 and float32, measured in the same round.

On a GPU lmcli is compiled, as by `--compile auto`, and nanoGPT by its README, so `nanogpt-tuned` is
what counts there; memory is the most that torch held of the GPU's.

Exit 1 where lmcli is not LEAST times as fast as nanoGPT, or slower than another of its rivals.
"""

import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from rounds import Clock, arguments, compare, serve, spread, verdict

SHAPES = {  # layers, heads, width, context, batch, vocabulary
    "a": (4, 4, 128, 64, 12, 65),
    "b": (6, 6, 384, 256, 16, 65),
    "c": (12, 12, 768, 512, 4, 50304),
    "d": (12, 12, 768, 1024, 32, 50304),  # for a GPU: GPT-2 and GPT-2 XL
    "e": (48, 25, 1600, 1024, 8, 50304),
}
LEAST = {"a": 1.9, "b": 3.5, "c": 4.3, "d": 1.3}  # times nanoGPT; without bfloat16 units 1.1
SHARE = {"c": 0.42, "e": 0.6}  # of what its matrix products reach
Step = Callable[[], object]


def lmcli(
    shape: str, threads: int, dropout: float = 0.0, device: str = "cpu", **settings: Any
) -> Step:
    import torch

    from lmcli.config.model import ModelConfig
    from lmcli.config.training import TrainingConfig
    from lmcli.dataset.batches import Windows
    from lmcli.model.transformer import Transformer
    from lmcli.training import precision
    from lmcli.training.optimizers import Optimizer
    from lmcli.training.step import gradients

    layers, heads, width, context, batch, vocabulary = SHAPES[shape]
    model_config = ModelConfig(
        vocab_size=vocabulary,
        context_length=context,
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        position="learned",
        norm="layernorm",
        activation="gelu",
        qk_norm=False,
        tie_embeddings=True,
        init="gpt2",
        dropout=dropout,
        attention_dropout=dropout,
        norm_eps=1e-5,
    ).resolved()
    machine = precision.resolve(device, settings.get("dtype", "auto"), threads)
    precision.prepare(machine)
    model = Transformer(model_config)
    model.init_weights(0)
    model.to(device)
    config = TrainingConfig(batch_size=batch, lr=1e-3, **settings)
    optimizer = Optimizer(model, config)
    working = precision.Working(model, machine, config.compile == "on")
    windows, done = Windows(Stream(vocabulary), context, 0), 0

    def step() -> object:
        nonlocal done
        done += 1
        parts = windows.parts(done - 1, batch, config.micro_batch_size)
        numbers = gradients(working, parts, config, done)
        optimizer.step(config.lr)
        working.refresh()
        return numbers

    assert torch.get_num_threads() == threads
    return step


class Stream:
    """Random tokens where lmcli looks for a split of a dataset."""

    split, n_tokens = "train", 1_000_000

    def __init__(self, vocabulary: int) -> None:
        self.ids = np.random.default_rng(0).integers(vocabulary, size=self.n_tokens)

    def take(self, where: np.ndarray) -> np.ndarray:
        return self.ids[where]


def nanogpt(
    shape: str, threads: int, checkout: str, tuned: bool, dropout: float = 0.0, device: str = "cpu"
) -> Step:
    import torch

    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig  # nanoGPT's

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as it does
    layers, heads, width, context, batch, vocabulary = SHAPES[shape]
    model = GPT(GPTConfig(context, vocabulary, layers, heads, width, dropout, False)).to(device)
    optimizer = model.configure_optimizers(1e-1, 1e-3, (0.9, 0.95), device)
    compute = torch.compile(model) if tuned else model
    data = np.random.default_rng(0).integers(vocabulary, size=1_000_000).astype(np.uint16)

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.randint(len(data) - context, (batch,))
        rows = [torch.from_numpy(data[i : i + context + 1].astype(np.int64)) for i in at]
        both = torch.stack(rows)
        return both[:, :-1].contiguous().to(device), both[:, 1:].contiguous().to(device)

    def step() -> object:
        x, y = get_batch()
        with torch.autocast(device, torch.bfloat16, enabled=tuned):
            _, loss = compute(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def trainer(shape: str, threads: int, device: str) -> None:
    """transformers' Trainer, whose loop asks for permission in a callback."""
    import tempfile

    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(threads)
    layers, heads, width, context, batch, vocabulary = SHAPES[shape]
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = {"n_positions": context, "n_embd": width, "n_layer": layers, "n_head": heads}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **size, **none))
    data = np.random.default_rng(0).integers(vocabulary, size=(10_000, context))
    rows = [{"input_ids": row, "labels": row} for row in data.tolist()]
    clock = Clock(batch * context)

    class Wait(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.stepped()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=10_000_000,
            bf16=True,
            use_cpu=device == "cpu",
            report_to=[],
            logging_steps=10_000_000,
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows, callbacks=[Wait()]).train()


def matmuls(shape: str, threads: int, device: str) -> Step:
    """The products of one step of the shape and nothing else."""
    import torch

    from lmcli.training import precision

    machine = precision.resolve(device, "auto", threads)
    precision.prepare(machine)
    dtype = getattr(torch, machine.dtype)
    layers, _, width, context, batch, vocabulary = SHAPES[shape]
    n = batch * context
    sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    jobs = []
    for k, o in [*sizes, (width, vocabulary)]:
        x, w, g = (torch.randn(s).to(device, dtype) for s in ((n, k), (o, k), (n, o)))
        outs = [torch.empty(s, dtype=dtype, device=device) for s in ((n, o), (n, k), (o, k))]
        jobs += [(x, w.T, outs[0]), (g, w, outs[1]), (g.T, x, outs[2])]

    def step() -> object:
        for i, (a, b, out) in enumerate(jobs):
            for _ in range(layers if i < 12 else 1):
                torch.mm(a, b, out=out)
        return jobs[-1][2][0, 0].item()  # which waits for a GPU

    return step


def child(name: str, shape: str, threads: int, checkout: str, device: str) -> None:
    if name == "trainer":
        trainer(shape, threads, device)
        return
    dropout = 0.2 * name.endswith("+dropout")
    compiled = "on" if "-compiled" in name or device == "cuda" else "off"
    kind = name.removesuffix("+dropout")
    if kind == "matmuls":
        step = matmuls(shape, threads, device)
    elif kind.startswith("nanogpt"):
        step = nanogpt(shape, threads, checkout, kind == "nanogpt-tuned", dropout, device)
    else:
        step = lmcli(shape, threads, dropout, device, compile=compiled)
    _, _, _, context, batch, _ = SHAPES[shape]
    serve(step, Clock(batch * context))


def main() -> None:
    rivals = "lmcli-compiled,nanogpt,nanogpt-tuned,trainer,matmuls"
    args = arguments(__doc__, 8.0, nanogpt="", shapes="a,b,c", rivals=rivals, device="cpu")
    threads = args.threads
    if args.child:
        child(args.child, args.shapes, threads, args.nanogpt, args.device)
        return
    limits = []
    for shape in args.shapes.split(","):
        names = ["lmcli", *args.rivals.split(",")]
        rates, peaks = compare(
            {
                name: [__file__, "--child", name, "--shapes", shape]
                + ["--threads", str(threads), "--nanogpt", args.nanogpt, "--device", args.device]
                for name in names
            },
            args.rounds,
            args.seconds,
        )
        print(f"\n({shape}) {SHAPES[shape]}, {threads} threads, {args.rounds} rounds\n")
        print("| | tokens/s | lmcli is faster by | peak memory, GiB |\n| --- | --- | --- | --- |")
        for name in names:
            ratios = [
                ours / theirs for ours, theirs in zip(rates["lmcli"], rates[name], strict=True)
            ]
            print(
                f"| {name} | {spread(rates[name], '{:,.0f}')} | {spread(ratios)} | "
                f"{peaks[name]:.2f} |"
            )
            if name in ("nanogpt", "nanogpt-tuned", "trainer"):
                least = 1.0
                if name == ("nanogpt" if args.device == "cpu" else "nanogpt-tuned"):
                    least = 1.1 if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" else LEAST[shape]
                limits.append((f"({shape}) {name}", statistics.median(ratios), least))
            elif name == "matmuls" and shape in SHARE:
                limits.append((f"({shape}) share", statistics.median(ratios), SHARE[shape]))
        sys.stdout.flush()
    verdict(limits)


if __name__ == "__main__":
    main()
