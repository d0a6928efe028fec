"""The seeded part of a corpus that a tokenizer may be trained on."""

from lmcli.text.sampling import sample

LINES = [f"line {i} of the corpus, number {i * i}\n" for i in range(4000)]
TEXT = "".join(LINES)


def take(texts, limit, seed=0) -> str:
    return "".join(sample(texts, limit, seed))


def test_a_cap_is_kept_and_the_order_too():
    parts = list(sample(LINES, 20_000, 0))
    size = sum(len(part.encode()) for part in parts)
    assert 20_000 - 60 < size <= 20_000
    numbers = [int(part.split()[1]) for part in parts]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    quarters = [sum(n // 1000 == q for n in numbers) / len(numbers) for q in range(4)]
    assert all(0.15 < share < 0.35 for share in quarters), "not from everywhere"


def test_the_same_seed_gives_the_same_sample_and_another_one_another():
    assert take(LINES, 9000) == take(LINES, 9000)
    assert take(LINES, 9000, seed=1) != take(LINES, 9000)


def test_what_is_taken_does_not_depend_on_what_comes_later():
    """Parts that both corpora have keep their numbers: a longer one only pushes some out."""
    short, long = set(sample(LINES[:2000], 9000, 0)), set(sample(LINES, 9000, 0))
    assert {part for part in long if part in set(LINES[:2000])} <= short


def test_without_a_cap_or_below_it_everything_is_taken():
    assert list(sample([TEXT], None, 0)) == [TEXT]
    assert take([TEXT], 10**9) == TEXT
    for part in list(sample([TEXT], 10**9, 0))[:-1]:
        assert len(part) <= 8192 and not part[-1].isspace()
    assert take(["x" * 20_000], 10**9) == "x" * 20_000


def test_bytes_are_counted_not_characters():
    assert len(take(["狐" * 100, "狸" * 100, "犬" * 100], 300).encode()) == 300
