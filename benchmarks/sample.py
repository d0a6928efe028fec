"""Decoding side by side with Hugging Face generate and llama.cpp, interleaved in one run.

    python benchmarks/sample.py [--tasks one,mixed,equal16,equal64] [--rounds 5]

The 124M shape of GPT-2 (vocabulary 50,304) with random weights, greedy, nothing ends early.
`one`: a prompt of 16 tokens, 128 new ones. `mixed`: 64 prompts of 8 to 512 tokens that stop after
16 to 256 new ones, in batches of 16; generate gets the same batches, padded on the left and sorted
by length, and stops a batch when its last row does. `equal16`, `equal64`: as many prompts of 32
tokens, 64 new ones each. Counted are the tokens that were asked for, per second. `bound` is what
reading all weights once a token at the measured bandwidth allows (task `one`).

llama.cpp takes part where llama-cpp-python and gguf are installed. Exit 1 where a median ratio is
below LEAST.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rounds import Clock, arguments, compare, serve, spread, verdict

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY = 12, 12, 768, 1024, 50304
BATCH = 16
RIVALS = {
    "one": "lmcli-float32,lmcli-bfloat16,lmcli-int8,lmcli-int4,generate-float32,generate-bfloat16",
    "mixed": "lmcli-bfloat16,generate-bfloat16",
    "equal16": "lmcli-bfloat16,generate-bfloat16",
    "equal64": "lmcli-bfloat16,generate-bfloat16",
}
BASE = {"one": "generate-float32"}
LEAST = {  # times BASE, or generate in bfloat16
    "one": {"lmcli-bfloat16": 1.8, "lmcli-int8": 2.2, "lmcli-int4": 3.5},
    "mixed": {"lmcli-bfloat16": 2.0},
    "equal16": {"lmcli-bfloat16": 1.2},
    "equal64": {"lmcli-bfloat16": 1.2},
}
Work = list[tuple[list[int], int]]  # prompts, and how many new tokens each gets


def work(task: str) -> Work:
    generator = np.random.default_rng(0)
    if task == "mixed":
        sizes = zip(generator.integers(8, 513, 64), generator.integers(16, 257, 64), strict=True)
    else:
        n, length, new = {"one": (1, 16, 128), "equal16": (16, 32, 64), "equal64": (64, 32, 64)}[
            task
        ]
        sizes = zip([length] * n, [new] * n, strict=True)
    return [(generator.integers(10, VOCABULARY, a).tolist(), int(b)) for a, b in sizes]


def lmcli(dtype: str, jobs: Work, threads: int) -> Callable[[], object]:
    import torch

    from lmcli.config.generation import GenerationConfig
    from lmcli.inference.engine import Engine, Request
    from lmcli.model.packing import pack
    from lmcli.model.presets import preset
    from lmcli.model.transformer import Transformer
    from lmcli.training import precision

    low = dtype if dtype == "float32" else "bfloat16"
    precision.prepare(precision.resolve("cpu", low, threads))
    model = Transformer(preset("gpt2").resolved(VOCABULARY))
    model.init_weights(0)
    model.eval().to(getattr(torch, low))
    if low == "bfloat16":
        pack(model, "none" if dtype == low else dtype)
    size = BATCH if len({new for _, new in jobs}) > 1 else len(jobs)
    config = GenerationConfig(temperature=0, max_new_tokens=256, batch_size=size)
    engine = Engine(model, VOCABULARY - 1, 0)

    def step() -> object:
        arriving = iter([[Request(ids, i, limit=new) for i, (ids, new) in enumerate(jobs)]])
        done = list(engine.stream(lambda n, wait: next(arriving, None), config))
        assert [len(c[0].ids) for c in done] == [new for _, new in jobs], "it ended early"
        return done

    return step


def generate(dtype: str, jobs: Work, threads: int) -> Callable[[], object]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteriaList

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    config = GPT2Config(vocab_size=VOCABULARY, **shape, eos_token_id=None, bos_token_id=None)
    model = GPT2LMHeadModel(config).eval().to(getattr(torch, dtype))
    ordered = sorted(jobs, key=lambda job: len(job[0]))
    size = BATCH if len({new for _, new in jobs}) > 1 else len(jobs)
    batches = []
    for start in range(0, len(ordered), size):
        some = ordered[start : start + size]
        longest = max(len(ids) for ids, _ in some)
        ids = torch.zeros(len(some), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (prompt, _) in enumerate(some):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        batches.append((ids, mask, torch.tensor([new for _, new in some])))

    @torch.inference_mode()
    def step() -> object:
        for ids, mask, new in batches:
            begin = ids.shape[1]

            def done(found: Any, scores: Any, begin: int = begin, new: Any = new) -> Any:
                return found.shape[1] - begin >= new

            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=int(new.max()),
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([done]),
            )
        return None

    return step


def llama(dtype: str, jobs: Work, threads: int) -> Callable[[], object]:
    """llama.cpp on a file of the same shape; one prompt at a time."""
    import gguf
    from llama_cpp import Llama

    generator = np.random.default_rng(0)
    path = Path(tempfile.mkdtemp()) / "model.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_bos_token_id(VOCABULARY - 1)

    def add(name: str, *shape: int) -> None:
        data = generator.normal(0, 0.02, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, data)
            return
        low = gguf.quantize(data, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(name, low, raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", VOCABULARY, WIDTH)
    add("position_embd.weight", CONTEXT, WIDTH)
    for name in ("output_norm.weight", "output_norm.bias"):
        add(name, WIDTH)
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{norm}.weight", WIDTH)
            add(f"blk.{i}.{norm}.bias", WIDTH)
        for name, n_out, n_in in (
            ("attn_qkv", 3 * WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", 4 * WIDTH, WIDTH),
            ("ffn_down", WIDTH, 4 * WIDTH),
        ):
            add(f"blk.{i}.{name}.weight", n_out, n_in)
            add(f"blk.{i}.{name}.bias", n_out)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = Llama(str(path), n_ctx=CONTEXT, n_threads=threads, verbose=False)

    def step() -> object:
        for ids, new in jobs:
            stream = model.generate(ids, temp=0.0)
            for _ in range(new):
                next(stream)
            model.reset()
        return None

    return step


def bandwidth(threads: int) -> float:
    """Bytes a second of reading memory that no cache holds."""
    import time

    import torch

    torch.set_num_threads(threads)
    data = torch.ones(2**28, dtype=torch.int32)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        data.sum(dtype=torch.int32)
        best = max(best, data.nbytes / (time.perf_counter() - began))
    return best


def child(name: str, task: str, threads: int) -> None:
    program, _, dtype = name.partition("-")
    jobs = work(task)
    step = {"lmcli": lmcli, "generate": generate, "llama": llama}[program](dtype, jobs, threads)
    warm = 3 if task == "one" else 1  # the others take half a minute
    serve(step, Clock(sum(new for _, new in jobs), warm))


def main() -> None:
    args = arguments(__doc__, 6.0, tasks="one,mixed,equal16,equal64", rivals="")
    threads = args.threads
    if args.child:
        child(args.child, args.tasks, threads)
        return
    limits = []
    for task in args.tasks.split(","):
        names = (args.rivals or RIVALS[task]).split(",")
        if task == "one" and not args.rivals and importlib.util.find_spec("llama_cpp"):
            names.append("llama-bfloat16")
        lines = {
            name: [__file__, "--child", name, "--tasks", task, "--threads", str(threads)]
            for name in names
        }
        rates, _ = compare(lines, args.rounds, args.seconds)
        against = "generate-float32" if "generate-float32" in names else names[-1]
        print(f"\n{task}, {threads} threads, {args.rounds} rounds\n")
        if task == "one":
            weights = 12 * LAYERS * WIDTH**2 + VOCABULARY * WIDTH
            speed = bandwidth(threads)
            bounds = [f"{speed / (weights * size):,.0f}" for size in (4, 2, 1, 0.625)]
            print(f"bound at {speed / 1e9:.1f} GB/s: {', '.join(bounds)} (32, 16, 8, 4 bits)\n")
        print(f"| | tokens/s | times {against} |\n| --- | --- | --- |")
        for name in names:
            ratios = [a / b for a, b in zip(rates[name], rates[against], strict=True)]
            print(f"| {name} | {spread(rates[name], '{:,.1f}')} | {spread(ratios)} |", flush=True)
            if name in LEAST[task] and against == BASE.get(task, "generate-bfloat16"):
                limits.append((f"{task}, {name}", statistics.median(ratios), LEAST[task][name]))
    verdict(limits)


if __name__ == "__main__":
    main()
