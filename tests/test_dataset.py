"""Store, order, batches: laws 1 and 4, and the invariants of the files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcli.dataset.batches import Windows
from lmcli.dataset.order import permute
from lmcli.dataset.store import StoreWriter, TokenStore, token_dtype
from lmcli.errors import DataError
from lmcli.randomness import mix, uniform


def make_store(folder, documents, vocab_size=1000) -> TokenStore:
    writer = StoreWriter(folder, "train", vocab_size, eos_id=2)
    for ids in documents:
        writer.add(ids, True)
    writer.close()
    return TokenStore(folder, "train", vocab_size)


@pytest.mark.parametrize(("vocab", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_ids_at_the_edge_of_the_type_survive(tmp_path, vocab, dtype):
    assert token_dtype(vocab) == np.dtype(dtype)
    store = make_store(tmp_path, [[vocab - 1, 0]], vocab)
    assert store.document(0).tolist() == [vocab - 1, 0, 2]
    with pytest.raises(DataError, match="outside the vocabulary"):
        make_store(tmp_path, [[vocab]], vocab)


def test_a_document_written_in_parts_is_one(tmp_path):
    writer = StoreWriter(tmp_path, "train", 100, eos_id=2)
    writer.add([5, 6], False)
    writer.add([7], True)
    writer.add([], True)
    writer.close()
    store = TokenStore(tmp_path, "train", 100)
    assert [store.document(i).tolist() for i in range(2)] == [[5, 6, 7, 2], [2]]


def test_damage_is_named(tmp_path):
    make_store(tmp_path, [[5, 6, 7]] * 9)
    good = (tmp_path / "train.bin").read_bytes()
    (tmp_path / "train.bin").write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"train.bin: 71 bytes, expected 72; truncated"):
        TokenStore(tmp_path, "train", 1000)
    (tmp_path / "train.bin").write_bytes(good)
    store = TokenStore(tmp_path, "train", 7)
    places = np.array([[0, 1], [9, 10]])
    reads = (lambda: store.check_ids(2), lambda: store.document(1), lambda: store.take(places))
    for read, document, token in zip(reads, (0, 1, 2), (2, 6, 10), strict=True):
        said = f"train.bin: token id 7 is .* of 7, in document {document} at token {token} of"
        with pytest.raises(DataError, match=said):
            read()
    offsets = np.fromfile(tmp_path / "train.idx", dtype="<i8")
    offsets[3] = offsets[5]
    (tmp_path / "train.idx").write_bytes(offsets.tobytes())
    with pytest.raises(DataError, match="offsets do not rise"):
        TokenStore(tmp_path, "train", 1000)
    (tmp_path / "train.idx").write_bytes(b"123")
    with pytest.raises(DataError, match="not a list of offsets"):
        TokenStore(tmp_path, "train", 1000)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(key=st.integers(0, 2**64 - 1), n=st.integers(1, 3000))
def test_the_order_is_a_bijection(key, n):
    assert sorted(permute(key, n, np.arange(n)).tolist()) == list(range(n))


def test_golden_order_is_part_of_the_format():
    assert permute(7, 10, np.arange(10)).tolist() == [0, 6, 2, 8, 5, 4, 9, 3, 1, 7]
    assert permute(2**63, 10**12, np.array([0, 1, 10**12 - 1])).tolist() == [
        553416101376,
        970370768680,
        775033175121,
    ]
    assert mix(1, 2, 3) == 0xCFFBD637B0880F8B
    assert uniform(0, 0) != uniform(0, 1) != uniform(1, 0)


@pytest.fixture
def windows(tmp_path) -> Windows:
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 1000, n).tolist() for n in rng.integers(1, 90, 40)]
    return Windows(make_store(tmp_path, documents), context_length=16, seed=3)


def test_a_batch_is_a_pure_function_of_its_numbers(windows):
    one = windows.parts(5, 8)[0]
    windows.parts(6, 8)
    two = Windows(windows.store, 16, 3).parts(5, 8)[0]
    assert np.array_equal(one.input_ids, two.input_ids)
    assert np.array_equal(one.targets[:, :-1], one.input_ids[:, 1:])
    assert not np.shares_memory(one.input_ids, one.targets)
    assert not np.array_equal(one.input_ids, Windows(windows.store, 16, 4).parts(5, 8)[0].input_ids)


@pytest.mark.parametrize(("world", "n_micro"), [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (1, 8)])
def test_ranks_and_micro_batches_partition_the_same_global_batch(windows, world, n_micro):
    whole = windows.parts(3, 8)[0].input_ids
    parts = [
        part.input_ids
        for rank in range(world)
        for part in windows.parts(3, 8, 8 // world // n_micro, rank, world)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_an_epoch_visits_each_window_once_and_epochs_differ(windows):
    n = windows.n_windows
    first, second = windows.starts(np.arange(n)), windows.starts(np.arange(n, 2 * n))
    for starts in (first, second):
        assert len(set(starts.tolist())) == n
        assert (np.diff(np.sort(starts)) == 16).all()
        assert starts.min() >= 0 and starts.max() + 17 <= windows.store.n_tokens
    assert first.tolist() != second.tolist()


def test_a_context_longer_than_the_split_is_refused(tmp_path):
    store = make_store(tmp_path, [[5] * 15])
    assert Windows(store, 15, 0).parts(0, 2)[0].input_ids.shape == (2, 15)
    with pytest.raises(DataError, match=r"--context-length 16 needs 17 tokens.*split has 16"):
        Windows(store, 16, 0)


def test_what_an_encoder_reads_of_a_text_leaves_room_for_its_eos(tmp_path):
    store = make_store(tmp_path, [list(range(4, 40))])
    widths = [Windows(store, 8, 3, 2).parts(i, 2)[0].source_ids.shape[1] for i in range(64)]
    assert set(widths) == set(range(2, 9))
