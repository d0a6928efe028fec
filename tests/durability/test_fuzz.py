"""No input of a user makes a traceback, a hang or a mess: text, records, settings, streams.

What is accepted round-trips exactly; what is skipped is counted exactly.
"""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from durable import scratch
from fuzzing import fuzz, run
from hypothesis import given
from hypothesis import strategies as st

from lmcli.commands.options import config_fields
from lmcli.config.data import ReadConfig, SplitConfig, TokenizerConfig
from lmcli.config.fields import flag
from lmcli.config.generation import GenerationConfig
from lmcli.config.model import ModelConfig
from lmcli.config.scoring import EvaluationConfig
from lmcli.config.training import TrainingConfig
from lmcli.dataset.store import Dataset
from lmcli.text.tokenizer import Tokenizer

pytestmark = pytest.mark.durability

ODD = ["\0", "\ufeff", "\r", "\r\n", "\u2028", "\x85", "\x1c", "\ud7ff", "\U0010ffff", "e\u0301"]
TEXTS = st.lists(
    st.one_of(st.text(max_size=20), st.sampled_from([*ODD, " ", "\n", "\n\n", "<eos>"])),
    max_size=20,
).map("".join)
# A mark at the start of a file, and what no reader takes for text, are other laws' business.
FILES = TEXTS.filter(lambda text: text.strip() and not text.startswith("\ufeff"))
WHOLE = ["--val-fraction", "0", "--test-fraction", "0"]


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with scratch() as folder:
        yield Path(shutil.copytree(REPOSITORY / "tests/golden/format-1", folder / "root"))


@pytest.fixture(scope="module")
def tokenizer(root) -> Tokenizer:
    return Tokenizer.load(root / "tokenizers/tok/tokenizer.json")


def built(root: Path, tokenizer: Tokenizer, path: Path, *flags: str) -> tuple[int, str, list[str]]:
    """(exit code, stderr, documents) of a dataset made of a file."""
    target = root / "datasets" / "new"
    shutil.rmtree(target, ignore_errors=True)
    done = run(root, "data", "build", path, "--tokenizer", "tok", "--name", "new", *WHOLE, *flags)
    if done.code:
        assert not target.exists()
        return done.code, done.err, []
    store = Dataset.open(target, hashes=True).splits["train"]
    documents = [tokenizer.decode_bytes(store.document(i)) for i in range(store.n_documents)]
    return 0, done.err, [document.decode() for document in documents]


@fuzz(150)
@given(text=FILES, packed=st.booleans())
def test_a_file_comes_back_as_it_was(root, tokenizer, text, packed):
    path = root / ("text.txt.gz" if packed else "text.txt")
    data = text.encode()
    # gzip members may follow one another
    half = len(data) // 2
    parts = gzip.compress(data[:half]) + gzip.compress(data[half:])
    path.write_bytes(parts if packed else data)
    assert built(root, tokenizer, path)[2] == [text]


@fuzz(100)
@given(text=FILES)
def test_lines_come_back_as_they_were(root, tokenizer, text):
    path = root / "text.txt"
    path.write_bytes(text.encode())
    lines = [line for line in text.split("\n") if line.encode().strip()]
    code, said, documents = built(root, tokenizer, path, "--document", "line")
    assert (code, documents) == (0, lines) if lines else code == 65, said


@fuzz(150)
@given(data=st.binary(max_size=200), document=st.sampled_from(["file", "line", "block"]))
def test_any_bytes_are_text_or_refused_with_their_place(root, tokenizer, data, document):
    path = root / "text.txt"
    path.write_bytes(data)
    code, said, documents = built(root, tokenizer, path, "--document", document)
    if code:
        assert code == 65 and "text.txt" in said
        assert "byte" in said or "no text" in said, said
    else:
        assert documents


GOOD = st.builds(
    lambda text, escaped, more: json.dumps({"text": text, **more}, ensure_ascii=escaped),
    TEXTS.filter(lambda text: text == text.encode("utf-8", "replace").decode()),
    st.booleans(),
    st.dictionaries(st.sampled_from("abc"), st.floats() | st.text(max_size=3), max_size=2),
)
BROKEN = st.sampled_from(
    [
        *('{"text": "a"', '{"text": 1}', '{"text": null}', '{"body": "a"}', '"text"', "[]", "1"),
        *('{"text": "\\ud800"}', "{'text': 'a'}", '{"text": "a"}}', "[" * 20_000, "{" * 5_000),
        *(
            '{"text": "a\tb"}',
            '{"n": 1' + "0" * 5_000 + ', "text": "a"}',
            "\x00",
            '{"text": ["a"]}',
        ),
        '{"text": "a", "text": 2}',
    ]
).map(str.encode) | st.sampled_from([b'{"text": "\xff"}', b"\xff\xfe", b'\xef\xbb\xbf{"text": 1}'])


@fuzz(150)
@given(
    lines=st.lists(
        st.tuples(st.just(True), GOOD.map(str.encode)) | st.tuples(st.just(False), BROKEN)
    ),
    end=st.sampled_from([b"", b"\n", b"\r\n\n"]),
)
def test_broken_records_are_named_or_counted(root, tokenizer, lines, end):
    path = root / "text.jsonl"
    path.write_bytes(b"\n".join(line for _, line in lines) + end)
    texts = [json.loads(line)["text"] for good, line in lines if good]
    texts = [text for text in texts if text]
    broken = [number for number, (good, _) in enumerate(lines, 1) if not good]
    code, said, documents = built(root, tokenizer, path, "--on-error", "skip")
    if texts:
        assert (code, documents) == (0, texts), said
        made = Dataset.open(root / "datasets/new").manifest
        assert made.config["skipped"] == len(broken)
    else:
        assert code == 65
    code, said, documents = built(root, tokenizer, path)
    if broken:
        assert code == 65 and f"text.jsonl:{broken[0]}:" in said, said
    else:
        assert code == (0 if texts else 65)


@fuzz(60)
@given(text=FILES, at=st.floats(0, 1), damage=st.sampled_from(["cut", "crc", "noise"]))
def test_broken_gzip_is_refused_by_name(root, tokenizer, text, at, damage):
    path = root / "text.txt.gz"
    data = bytearray(gzip.compress(text.encode()))
    if damage == "cut":
        del data[max(1, int(at * (len(data) - 1))) :]
    elif damage == "crc":
        data[-8] ^= 1
    else:
        data += b"noise"
    path.write_bytes(data)
    code, said, _ = built(root, tokenizer, path)
    assert code == 65 and "text.txt.gz: broken gzip" in said, said
    code, _, _ = built(root, tokenizer, path, "--on-error", "skip")
    assert code == 65  # the only file is left out


@fuzz(150)
@given(lines=st.lists(TEXTS.map(lambda text: text.replace("\n", "")), max_size=5))
def test_encode_and_decode_are_inverse(root, lines):
    text = "".join(line + "\n" for line in lines).encode()
    ids = run(root, "tokenizer", "encode", "tok", input=text)
    assert ids.code == 0
    assert run(root, "tokenizer", "decode", "tok", input=ids.out).out == text


@fuzz(150)
@given(data=st.binary(max_size=60) | st.text("0123456789 ,-[]\n", max_size=60).map(str.encode))
def test_encode_and_decode_take_any_bytes(root, data):
    for command in ("encode", "decode"):
        done = run(root, "tokenizer", command, "tok", input=data)
        assert done.code == 0 or (done.code == 65 and "standard input, line" in done.err)


@fuzz(40)
@given(data=st.binary(max_size=40) | TEXTS.map(str.encode))
def test_sample_takes_any_bytes(root, data):
    done = run(root, "sample", "base", "--max-new-tokens", "2", input=data)
    assert done.code in (0, 65)
    if done.code == 0:
        assert done.out.count(b"\n") == data.count(b"\n") + (
            not data.endswith(b"\n") and data != b""
        )


TRAINING = config_fields(TrainingConfig, ModelConfig)
TOML_VALUES = ["1", "-1", "1e400", "nan", "inf", '"x"', "true", "[]", "{}", "1979-05-27", '"10M"']
TOML_VALUES += ["9" * 400, "9" * 5000, "-" + "9" * 400, "0x1", "'''\n'''", "[" * 3000 + "]" * 3000]
TOML = st.lists(
    st.tuples(st.sampled_from([*TRAINING, "stepz", "a.b"]), st.sampled_from(TOML_VALUES)),
    max_size=3,
).map(lambda pairs: "\n".join(f"{key} = {value}" for key, value in pairs))


@fuzz(200)
@given(data=TOML.map(str.encode) | st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_settings_file_is_used_or_refused(root, data):
    path = root / "run.toml"
    path.write_bytes(data)
    line = ("train", "--data", "corpus", "--name", "new", "--config", path, "--dry-run")
    done = run(root, *line)
    assert done.code in (0, 2, 65, 69, 78), done.err
    assert done.code == 0 or done.err.count("\n") <= 3


COMMANDS = {
    ("train", "--data", "corpus", "--name", "new", "--dry-run"): (TrainingConfig, ModelConfig),
    ("sample", "base", "x", "--max-new-tokens", "1"): (GenerationConfig,),
    ("eval", "base"): (EvaluationConfig,),
    ("data", "build", "{text}", "--tokenizer", "tok", "--name", "new"): (SplitConfig, ReadConfig),
    ("tokenizer", "train", "{text}", "--name", "new"): (TokenizerConfig, ReadConfig),
}
# What a shell can pass on.
SAYABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
FLAGS = [(line, name) for line, classes in COMMANDS.items() for name in config_fields(*classes)]
NUMBERS = [
    "0",
    "-1",
    "1e400",
    "nan",
    "inf",
    "1e18",
    "10M",
    "1,2",
    "\u0661",
    "0.5",
    "1e-400",
    "9" * 999,
]


@pytest.fixture
def text(root) -> Path:
    path = root / "some.txt"
    path.write_text("Some text, and more of it.\n" * 40)
    return path


def try_flag(root: Path, text: Path, line: tuple[str, ...], name: str, value: str) -> None:
    for kind in ("datasets", "tokenizers", "runs"):
        shutil.rmtree(root / kind / "new", ignore_errors=True)
    done = run(root, *(word.format(text=text) for word in line), f"{flag(name)}={value}")
    assert done.code in (0, 2, 65, 66, 69, 71, 78), done.err


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[0])
def test_any_number_for_any_flag_is_used_or_refused(root, text, line):
    for name in config_fields(*COMMANDS[line]):
        for value in NUMBERS:
            try_flag(root, text, line, name, value)


@fuzz(200)
@given(which=st.sampled_from(FLAGS), value=SAYABLE)
def test_any_text_for_any_flag_is_used_or_refused(root, text, which, value):
    try_flag(root, text, *which, value)


LIMIT_MB = 900


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz", "line.txt", "line.jsonl"])
def test_memory_stays_bounded(root, name):
    """A gigabyte of zeros in a megabyte of gzip; a line of text, and a record of 60 MB."""
    path, words = root / name, "so many words in one line " * 300_000
    bomb = name.startswith("bomb")
    if bomb:
        path.write_bytes(gzip.compress(b"0" * 2**20) * 1024)
    else:
        record = json.dumps({"more": "x" * 50_000_000, "text": words})
        path.write_text(words if name.endswith("txt") else record)
    train = ("tokenizer", "train", path, "--name", name, "--vocab-size", "270")
    build = ("data", "build", path, "--name", name, "--tokenizer", "tok", *WHOLE)
    for line in (train, (*build, "--document", "line")) if bomb else (train,):
        code, used, said = measured(*line, "--artifacts", root)
        assert code == (65 if bomb else 0) and used < LIMIT_MB, (line, used, said)
    path.unlink()


def measured(*line: object) -> tuple[int, int, str]:
    """(exit code, resident memory in MB at most, stderr) of a command in a process of its own."""
    words = [sys.executable, "-m", "lmcli", *map(str, line), "-q"]
    script = (
        "import resource, subprocess;"
        f"code = subprocess.run({words!r}).returncode;"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=100)
    code, used = map(int, done.stdout.split())
    return code, used, done.stderr.decode()
