"""GPT-2 folders in and out against what `transformers` computes, with tiny random weights."""

import json
import os
import shutil
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

for offline in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[offline] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it says on import is not ours
    transformers = pytest.importorskip("transformers", reason="the reference for interop")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FOX = "The quick brown fox jumps over the lazy"
SHAPE = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2 = ["--preset", "gpt2", "--dropout", "0.1", *TINY, "--context-length", "64"]


@pytest.fixture(autouse=True)
def _deaf():
    """transformers deprecates parts of itself; its warnings say nothing about our folders."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        yield


def their_tokenizer(folder: Path, text: str, vocab_size: int = 300) -> int:
    """GPT-2's files: byte-level BPE whose only special token is <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder, inner.post_processor = decoders.ByteLevel(), processors.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([text], trainer)
    inner.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocab | {"<|endoftext|>": len(vocab)}))
    inner.model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(folder / "tokenizer.json"))
    return inner.get_vocab_size()


def their_model(folder: Path, vocab_size: int, shards: str = "1GB", **changes):
    """A random GPT2LMHeadModel, saved; with biases and norms that are not what they begin as."""
    ids = {"bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1}
    config = transformers.GPT2Config(vocab_size=vocab_size, **ids, **SHAPE | changes)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder, max_shard_size=shards)
    return model


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, prose) -> Path:
    """A folder as Hugging Face ships GPT-2, with random weights."""
    folder = tmp_path_factory.mktemp("gpt2")
    their_model(folder, their_tokenizer(folder, prose))
    return folder


@pytest.fixture
def folder(gpt2, tmp_path) -> Path:
    return Path(shutil.copytree(gpt2, tmp_path / "folder"))


@pytest.fixture
def imported(cli, root, folder) -> Path:
    """The artifact root with `folder` as run `gpt2`."""
    done = cli("import", folder, "--name", "gpt2")
    assert done.code == 0, done.err
    return root


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """The root `tiny` and, in it, a trained run `small` of GPT-2's shape, with scores."""
    from lmcli.cli import main

    root = tmp_path_factory.mktemp("base") / "artifacts"
    shutil.copytree(tiny, root)
    train = ["train", "--data", "corpus", "--name", "small", "--steps", "30", "--lr", "0.01"]
    for line in (train + GPT2, ["eval", "small", "--split", "val"]):
        assert main([*line, "--artifacts", str(root), "-q"]) == 0
    return root


@pytest.fixture
def exported(cli, base, root) -> Path:
    shutil.copytree(base, root)
    done = cli("export", "small", "--format", "hf", "--out", "out")
    assert done.code == 0 and done.out == "out\n", done.err
    return Path("out")


def our_logits(root: Path, name: str, ids: torch.Tensor) -> torch.Tensor:
    from lmcli.runs.load import load

    model = load(root, name, device="cpu", dtype="float32").engine.model
    with torch.no_grad():
        return model.logits(model(ids))


def their_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(ids).logits


def some_ids(vocab_size: int = 300) -> torch.Tensor:
    return torch.randint(vocab_size, (3, 32), generator=torch.Generator().manual_seed(1))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted(run.glob("checkpoints/step-*"))[-1] / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 48, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
        {"tie_word_embeddings": False, "activation_function": "gelu"},
        {"scale_attn_weights": False, "activation_function": "gelu_pytorch_tanh"},
        {"n_positions": 32, "n_ctx": 32, "n_head": 2, "activation_function": "swish"},
    ],
)
def test_an_imported_model_has_the_same_logits(cli, root, folder, changes):
    their_model(folder, 300, **changes)
    assert cli("import", folder, "--name", "m").code == 0
    ids = some_ids()
    torch.testing.assert_close(
        our_logits(root, "m", ids), their_logits(folder, ids), rtol=0, atol=1e-4
    )


def test_an_imported_run_samples_scores_verifies_and_trains_on(cli, imported, prose):
    Path("text.txt").write_text(prose)
    assert cli("verify", "runs/gpt2").out.startswith("ok")
    assert "imported from folder" in cli("show", "runs/gpt2").out
    assert "finished at step 0" in cli("ls", "runs").out
    assert cli("sample", "gpt2", FOX, "--max-new-tokens", "5").out
    build = cli("data", "build", "text.txt", "--tokenizer", "gpt2", "--name", "corpus")
    assert build.code == 0, build.err
    assert cli("eval", "gpt2", "--data", "corpus", "--split", "val").code == 0
    assert cli("eval", "gpt2").code == 2
    train = ["train", "--from", "gpt2", "--data", "corpus", "--name", "tuned", "--steps", "6"]
    train += ["--lr", "0.001", "--batch-size", "4", "--threads", "1", "--save-every", "3"]
    done = cli(*train)
    assert done.code == 0 and "beginning with those of gpt2" in done.err, done.err
    assert "finished at step 6" in cli(*train).err
    assert not same(weights(imported / "runs/gpt2"), weights(imported / "runs/tuned"))
    assert cli("verify", "tuned").code == 0 and cli("prove", "tuned", "--steps", "3").code == 0
    assert cli("rm", "runs/gpt2").code == 77
    assert "runs/gpt2" in cli("show", "tuned").out


def test_training_on_begins_with_the_given_weights(cli, imported, prose):
    Path("text.txt").write_text(prose)
    cli("data", "build", "text.txt", "--tokenizer", "gpt2", "--name", "corpus")
    train = ["train", "--data", "corpus", "--batch-size", "4", "--threads", "1"]
    train += ["--steps", "2", "--lr", "1e-9", "--weight-decay", "0"]
    assert cli(*train, "--from", "gpt2", "--name", "still").code == 0
    before, after = (weights(imported / "runs" / name) for name in ("gpt2", "still"))
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)
    for more, code, says in (
        (["--name", "x", "--from", "gpt2", "--n-layers", "3"], 78, "--n-layers 3"),
        (["--name", "x", "--from", "gpt2", "--preset", "nano"], 78, "--"),
        (["--name", "x", "--from", "nobody"], 66, "nobody"),
        (["--name", "gpt2"], 78, "lmcli train --from gpt2 --data DATASET --name NEW"),
        (["--name", "still", "--from", "tuned"], 78, "--from tuned: the run was started from gpt2"),
    ):
        done = cli(*train, *more)
        assert done.code == code and says in done.err and done.err.count("\n") == 1, done.err
    tuned = cli(*train, "--from", "gpt2", "--name", "y", "--dropout", "0.2", "--dry-run")
    assert json.loads(tuned.out)["model"]["dropout"] == 0.2


def test_a_run_that_lost_its_first_weights_does_not_go_on_from_random_ones(cli, imported, prose):
    Path("text.txt").write_text(prose)
    cli("data", "build", "text.txt", "--tokenizer", "gpt2", "--name", "corpus")
    train = ["train", "--data", "corpus", "--from", "gpt2", "--name", "t", "--steps", "2"]
    assert cli(*train, "--batch-size", "4", "--threads", "1").code == 0
    shutil.rmtree(imported / "runs/t/checkpoints")
    done = cli("train", "--name", "t", "--steps", "9")
    assert done.code == 65 and "nor the weights it began with" in done.err


def test_the_same_import_again_and_another_one(cli, imported, folder):
    assert "there already" in cli("import", folder, "--name", "gpt2").err
    their_model(folder, 300, n_layer=1)
    assert cli("import", folder, "--name", "gpt2").code == 78
    assert cli("import", folder, "--name", "gpt2", "--force").code == 0
    their_model(folder, their_tokenizer(folder, "other text " * 99, 290))
    assert "tokenizer gpt2 exists" in cli("import", folder, "--name", "gpt2").err
    assert cli("import", folder, "--name", "gpt2", "--force").code == 0
    assert cli("verify", "runs/gpt2").code == cli("verify", "tokenizers/gpt2").code == 0


def test_layouts_of_one_model_give_one_run(cli, imported, folder, tmp_path):
    """Shards, names without the prefix, old buffers, half precision, vocab.json + merges.txt."""
    whole = weights(imported / "runs/gpt2")
    their_model(folder, 300, shards="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    (folder / "tokenizer.json").unlink()
    done = cli("import", folder, "--name", "sharded")
    assert done.code == 0, done.err
    assert same(weights(imported / "runs/sharded"), whole)
    one, two = (imported / f"tokenizers/{n}/tokenizer.json" for n in ("gpt2", "sharded"))
    assert one.read_bytes() == two.read_bytes()

    plain = {}
    for path in folder.glob("model-*.safetensors"):
        plain |= {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
    plain["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    plain["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    plain["lm_head.weight"] = plain["wte.weight"].clone()
    save_file(plain, folder / "model.safetensors")
    assert cli("import", folder, "--name", "plain").code == 0
    assert same(weights(imported / "runs/plain"), whole)

    save_file({k: v.bfloat16() for k, v in plain.items()}, folder / "model.safetensors")
    assert cli("import", folder, "--name", "half").code == 0
    half = weights(imported / "runs/half")
    assert same(half, {k: v.bfloat16().float() for k, v in whole.items()})


def test_an_export_loads_with_the_same_logits(cli, exported, root):
    ids = some_ids(320)
    torch.testing.assert_close(
        our_logits(root, "small", ids), their_logits(exported, ids), rtol=0, atol=1e-4
    )
    config = transformers.AutoConfig.from_pretrained(exported)
    assert (config.eos_token_id, config.pad_token_id, config.resid_pdrop) == (2, 0, 0.1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)
    assert tokenizer.model_max_length == 64
    card = (exported / "README.md").read_text()
    assert "license" in card.lower() and "steps = 30" in card and "bits_per_byte" in card
    assert "corpus" in card and "<eos>" in card
    Path("card.toml").write_text(card.partition("```toml\n")[2].partition("```")[0])
    again = cli("train", "--data", "corpus", "--name", "x", "--config", "card.toml", "--dry-run")
    assert json.loads(again.out) == json.loads((root / "runs/small/config.json").read_text())


def test_the_card_of_a_run_on_pairs_has_its_template(cli, base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "artifacts")
    monkeypatch.setenv("LMCLI_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.chdir(tmp_path)
    pairs = [json.dumps({"prompt": f"{i} foxes", "completion": "run"}) for i in range(60)]
    Path("pairs.jsonl").write_text("\n".join(pairs))
    build = ["pairs.jsonl", "--pairs", "--tokenizer", "tok", "--name", "pairs"]
    assert cli("data", "build", *build).code == 0
    tune = ["--from", "small", "--data", "pairs", "--name", "tuned", "--budget", "1s"]
    assert cli("finetune", *tune, "--lora-rank", 2).code == 0
    assert cli("export", "tuned", "--format", "hf", "--out", "out").code == 0
    card = Path("out/README.md").read_text()
    assert 'generate("The quick brown fox<sep>", ' in card and '`"{source}<sep>' in card
    assert "budget" not in card and "steps = " in card  # which are known now
    assert "Data: pairs, id" in card and "Began with the weights of: small, id" in card


def test_the_recipe_of_a_card_is_toml():
    from lmcli.interop import card

    recipe = {"steps": 3, "adam_eps": 1e-8, "pack": False, "eval_prompt": 'a "fox" \\ 🦊\n狐'}
    facts = {"run": "r", "step": 3, "eos": "<eos>", "data": "d", "checkpoint": "c"}
    text = card.text([], recipe | {"budget": None}, None, **facts)
    assert tomllib.loads(text.partition("```toml\n")[2].partition("```")[0]) == recipe


@pytest.mark.parametrize("prompt", [FOX, "", " spaces  and 狐狸\n", "a , b . don 't"])
def test_greedy_text_is_equal(cli, exported, root, prompt):
    greedy = ["--temperature", "0", "--max-new-tokens", "12", "--dtype", "float32", "--echo"]
    ours = cli("sample", "small", prompt, *greedy, "--json").out
    pipe = transformers.pipeline("text-generation", model=str(exported))
    [theirs] = pipe(prompt, do_sample=False, max_new_tokens=12)
    assert theirs["generated_text"] == json.loads(ours)["completion"]


def test_greedy_text_of_an_import_is_equal(cli, imported, folder):
    """GPT-2's own tokenizer puts no <|endoftext|> before a prompt; lmcli does."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(FOX)["input_ids"]]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=tokenizer.eos_token_id,
    )
    theirs = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    sample = ["sample", "gpt2", FOX, "--temperature", "0", "--max-new-tokens", "8"]
    ours = json.loads(cli(*sample, "--dtype", "float32", "--json").out)["completion"]
    assert ours == theirs


def test_the_well_known_snippet(cli, exported):
    """Three texts of at most 50 tokens that begin with the prompt, there and here."""
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    generator = transformers.pipeline("text-generation", model="out")
    texts = generator(FOX, do_sample=True, max_length=50, num_return_sequences=3)
    theirs = [text["generated_text"] for text in texts]
    sample = ["sample", "small", FOX, "--max-length", "50", "--num-return-sequences", "3"]
    answers = cli(*sample, "--echo", "--json").out.splitlines()
    ours = [json.loads(line)["completion"] for line in answers]
    for texts in (theirs, ours):
        assert len(texts) == 3 and len(set(texts)) == 3
        for text in texts:
            assert text.startswith(FOX) and len(text) > len(FOX)
    n_prompt = len(tokenizer(FOX, add_special_tokens=False)["input_ids"])
    assert all(json.loads(line)["tokens"] + n_prompt <= 50 for line in answers)


def test_round_trips_keep_every_bit(cli, exported, root, folder):
    assert cli("import", "out", "--name", "back").code == 0
    assert same(weights(root / "runs/small"), weights(root / "runs/back"))
    ours, back = (
        json.loads((root / f"runs/{n}/config.json").read_text()) for n in ("small", "back")
    )
    assert ours["model"] == back["model"]
    tokenizers = [root / f"tokenizers/{n}/tokenizer.json" for n in ("tok", "back")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
    assert cli("eval", "back", "--data", "corpus").code == 0
    assert cli("export", "back", "--format", "hf", "--out", "out2").code == 0
    for name in sorted(p.name for p in exported.iterdir()):
        if name != "README.md":
            assert (exported / name).read_bytes() == (Path("out2") / name).read_bytes(), name
    # Theirs, through lmcli, is theirs.
    assert cli("import", folder, "--name", "g").code == 0
    assert cli("export", "g", "--format", "hf", "--out", "g2").code == 0
    assert same(load_file(folder / "model.safetensors"), load_file("g2/model.safetensors"))
    assert cli("import", "g2", "--name", "g2").code == 0
    assert same(weights(root / "runs/g"), weights(root / "runs/g2"))


def test_an_export_is_whole_or_not_at_all(cli, exported, monkeypatch):
    assert cli("export", "small", "--format", "hf", "--out", "out").code == 2
    from lmcli.interop import huggingface

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "save_file", full)
    done = cli("export", "small", "--format", "hf", "--out", "other/place")
    assert done.code == 74 and not Path("other/place").exists()
    assert list(Path("other").iterdir()) == []


def test_what_gpt2_cannot_represent_is_named(cli, tiny_copy):
    done = cli("export", "base", "--format", "hf", "--out", "out")
    assert done.code == 78 and "run base cannot be exported: position is rope" in done.err
    assert done.err.count("\n") == 1 and not Path("out").exists()
    train = ["train", "--data", "corpus", "--steps", "1", *GPT2]
    for i, (flags, says) in enumerate(
        (
            (["--activation", "relu2"], "activation is relu2, and gpt2 can only have gelu_tanh"),
            (["--n-kv-heads", "1"], "n_kv_heads is 1"),
            (["--attention-scale", "0.5"], "attention_scale is 0.5"),
            (["--output-bias"], "output_bias is True"),
            (["--sliding-window", "8"], "sliding_window is 8"),
        )
    ):
        assert cli(*train, *flags, "--name", f"r{i}").code == 0
        done = cli("export", f"r{i}", "--format", "hf", "--out", "out")
        assert done.code == 78 and says in done.err, done.err


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v != "absent"}))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


WQ = "transformer.h.1.attn.c_attn.weight"
REFUSALS = {
    "no folder": (lambda f: shutil.rmtree(f), 66, "no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), 66, "config.json: no such file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), 66, "no model.safetensors"),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "merges.txt")],
        66,
        "no tokenizer.json here",
    ),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        77,
        "save_pretrained",
    ),
    "another pickle": (lambda f: (f / "model.safetensors").rename(f / "m.pt"), 77, "no pickles"),
    "another family": (
        lambda f: edit(f / "config.json", model_type="bert"),
        78,
        "'bert', not gpt2",
    ),
    "no family": (lambda f: edit(f / "config.json", model_type="absent"), 78, "model_type None"),
    "unknown key": (lambda f: edit(f / "config.json", n_embed=3), 78, "did you mean 'n_embd'"),
    "quantised": (
        lambda f: edit(f / "config.json", quantization_config={"bits": 4}),
        78,
        "'quantization_config' is no setting",
    ),
    "scaled by layer": (
        lambda f: edit(f / "config.json", scale_attn_by_inverse_layer_idx=True),
        78,
        "scale_attn_by_inverse_layer_idx is True",
    ),
    "upcast": (
        lambda f: edit(f / "config.json", reorder_and_upcast_attn=True),
        78,
        "reorder_and_upcast_attn is True",
    ),
    "activation": (
        lambda f: edit(f / "config.json", activation_function="mish"),
        78,
        "activation_function is 'mish'; lmcli computes gelu_new",
    ),
    "two dropouts": (lambda f: edit(f / "config.json", embd_pdrop=0.3), 78, "only one dropout"),
    "two lengths": (lambda f: edit(f / "config.json", n_ctx=128), 78, "only one context_length"),
    "bad number": (lambda f: edit(f / "config.json", n_layer="two"), 78, "n_layer"),
    "bad heads": (lambda f: edit(f / "config.json", n_head=3), 78, "not a multiple of"),
    "no layers": (lambda f: edit(f / "config.json", n_layer=0), 78, "n_layer must be at least 1"),
    "huge": (
        lambda f: edit(f / "config.json", n_layer=10**12),
        78,
        "n_layer must be at most 1,024",
    ),
    "other eos": (lambda f: edit(f / "config.json", eos_token_id=999), 78, "eos_token_id 999"),
    "vocabulary": (
        lambda f: edit(f / "config.json", vocab_size=304),
        78,
        "the tokenizer has 300",
    ),
    "wrong shape": (
        lambda f: edit(f / "config.json", n_positions=128),
        78,
        "transformer.wpe.weight is torch.float32 [64, 32]; the config asks for floats [128, 32]",
    ),
    "not transposed": (
        lambda f: change_tensors(f, lambda t: t.update({WQ: t[WQ].T})),
        78,
        "[96, 32]; the config asks for floats [32, 96]",
    ),
    "integers": (
        lambda f: change_tensors(f, lambda t: t.update({WQ: t[WQ].to(torch.int8)})),
        78,
        "is torch.int8",
    ),
    "missing tensor": (
        lambda f: change_tensors(f, lambda t: t.pop(WQ)),
        78,
        f"{WQ} is missing",
    ),
    "one tensor more": (
        lambda f: change_tensors(f, lambda t: t.update({"score.weight": torch.ones(2)})),
        78,
        "score.weight is no tensor of gpt2",
    ),
    "untied in fact": (
        lambda f: change_tensors(f, lambda t: t.update({"lm_head.weight": torch.ones(300, 32)})),
        78,
        "the config ties them",
    ),
    "not finite": (
        lambda f: change_tensors(f, lambda t: t[WQ][0].fill_(float("nan"))),
        65,
        "NaN or infinity",
    ),
    "cut off": (lambda f: os.truncate(f / "model.safetensors", 5000), 65, "not readable as"),
    "bad json": (lambda f: (f / "config.json").write_text("{" * 99), 65, "not valid JSON"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), 65, "not a tokenizer"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_sentence(cli, root, folder, name):
    spoil, code, says = REFUSALS[name]
    spoil(folder)
    done = cli("import", folder, "--name", "x")
    assert done.code == code and says in done.err, done.err
    assert done.err.startswith("lmcli: ") and done.err.count("\n") == 1
    assert not (root / "runs/x").exists() and not (root / "tokenizers/x").exists()


@pytest.mark.parametrize("shard", ["../model.safetensors", "/tmp/model.safetensors", "..", ""])
def test_an_index_may_not_leave_its_folder(cli, root, folder, shard):
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {WQ: shard}}))
    done = cli("import", folder, "--name", "x")
    assert done.code == 77 and "leads out of the folder" in done.err
    index.write_text(json.dumps({"weight_map": {WQ: "gone.safetensors"}}))
    assert cli("import", folder, "--name", "x").code == 66
    for bad in ({}, {"weight_map": [1]}, {"weight_map": {WQ: 3}}):
        index.write_text(json.dumps(bad))
        assert cli("import", folder, "--name", "x").code == 65


def test_links_stay_in_the_folder_or_in_the_cache(cli, root, folder, tmp_path):
    """A link out is refused; the cache of the hub links each snapshot's files to its blobs."""
    cache = tmp_path / "models--gpt2"
    (cache / "snapshots").mkdir(parents=True)
    shutil.copytree(folder, cache / "blobs")
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert cli("import", snapshot, "--name", "cached").code == 0
    shutil.move(folder / "config.json", tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    assert cli("import", folder, "--name", "x").code == 77


def test_code_in_a_folder_is_not_run(cli, root, folder, tmp_path):
    canary = tmp_path / "canary"
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert cli("import", folder, "--name", "x").code == 0 and not canary.exists()
