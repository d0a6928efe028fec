"""Numbers as people write and read them, exactly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcli.config import units
from lmcli.errors import UsageError


@settings(max_examples=50)
@given(st.integers(0, 10**20))
def test_whole_numbers_keep_every_digit(n):
    assert units.parse_count(str(n)) == n
    assert units.parse_count(f"{n}k") == 1000 * n
    assert units.parse_bytes(f"{n}GiB") == n * 2**30


@settings(max_examples=50)
@given(st.integers(0, 99_999))
def test_decimals_are_decimal(n):
    """As floats, 2.3 x 10**6 is 2299999.9999999995."""
    assert units.parse_count(f"{n / 1000:.3f}M") == 1000 * n
    assert units.parse_bytes(f"{n / 1000:.3f}GB") == 10**6 * n


@pytest.mark.parametrize("text", ["1e400", "1e99999999", "0.0001k", "1.5", "10 000", "1,5x", "²"])
def test_what_is_no_count_is_a_usage_error(text):
    with pytest.raises(UsageError):
        units.parse_count(text)


@settings(max_examples=50)
@given(st.text(max_size=12))
def test_no_text_is_a_bug(text):
    for parse in (units.parse_count, units.parse_bytes, units.parse_duration):
        try:
            assert parse(text) >= 0
        except UsageError as error:
            assert repr(text) in str(error)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (999_499, "999k"), (999_500, "1M"), (999_999, "1M"), (0.5, "0.5")],
)
def test_rounding_never_shows_a_thousand_of_a_unit(value, shown):
    assert units.show_count(value) == shown


def test_commas_stand_between_thousands_only():
    assert units.parse_count("1,500,000") == 1_500_000
    for text in ("1,5", "1,50", "15,00,0"):
        with pytest.raises(UsageError):
            units.parse_count(text)
