"""Memory of a training step that is neither weights, gradients nor optimizer, by vocabulary.

    python benchmarks/memory.py [--layers 12 --width 768 --context 512 --batch 4]

Each vocabulary in a process of its own: peak resident memory of four steps, less that before the
model was made, less 20 bytes a parameter (float32 weights, gradients, two moments; bfloat16 weights
and gradients) or 16 in float32. What is left are activations, logits and what the allocator keeps.
"""

import argparse
import resource
import subprocess
import sys


def rest(vocabulary: int, args: argparse.Namespace) -> float:
    import torch
    from train import Stream

    from lmcli.config.model import ModelConfig
    from lmcli.config.training import TrainingConfig
    from lmcli.dataset.batches import Windows
    from lmcli.model.transformer import Transformer
    from lmcli.training import precision
    from lmcli.training.optimizers import Optimizer
    from lmcli.training.step import gradients

    machine = precision.resolve("cpu", "auto", 0)
    precision.prepare(machine)
    torch.ones(64, 64, dtype=getattr(torch, machine.dtype)).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shape = {"n_layers": args.layers, "n_heads": args.width // 64, "d_model": args.width}
    config = ModelConfig(
        vocab_size=vocabulary, context_length=args.context, tie_embeddings=True, **shape
    ).resolved()
    model = Transformer(config)
    model.init_weights(0)
    training = TrainingConfig(batch_size=args.batch)
    optimizer, working = Optimizer(model, training), precision.Working(model, machine)
    windows = Windows(Stream(vocabulary), args.context, 0)
    for step in range(4):
        gradients(working, windows.parts(step, args.batch), training, step + 1)
        optimizer.step(1e-3)
        working.refresh()
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return peak - model.n_parameters() * (20 if machine.dtype == "bfloat16" else 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in {"layers": 12, "width": 768, "context": 512, "batch": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(rest(args.child, args))
        return
    found = []
    for vocabulary in (50304, 128256):
        line = [sys.executable, *sys.argv, "--child", str(vocabulary)]
        found.append(float(subprocess.run(line, check=True, capture_output=True).stdout))
        print(f"vocabulary {vocabulary:,}: {found[-1] / 2**20:,.0f} MiB besides")
    print(f"ratio {found[1] / found[0]:.3f}")


if __name__ == "__main__":
    main()
