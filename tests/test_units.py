"""Numbers as people read them."""

import pytest

from star.units import format_axis_tick, format_bytes, format_count, format_number, format_rate, format_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01744, "0.0174"),
        (0.0000031, "3.1e−06"),
        (-1.5, "−1.5"),
        (999.4, "999"),
        (12345.4, "12,345"),
        (-12345.4, "−12,345"),
        (1_234_567, "1.23e+06"),
    ],
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (0.000003, "3e−06"), (-2, "−2"), (1500, "1500")])
def test_a_tick_keeps_its_digits(value: float, text: str) -> None:
    assert format_axis_tick(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (41, "41"),
        (999, "999"),
        (1000, "1k"),
        (596_049_920, "596M"),
        (8_190_735_360, "8.19B"),
        (1e12, "1,000B"),
    ],
)
def test_a_count_is_in_its_largest_unit(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (1_192_099_840, "1.19 GB"),
        (2.5e12, "2.5 TB"),
        (1.5e15, "1,500 TB"),
    ],
)
def test_bytes_are_in_their_largest_unit(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (9.99, "10"), (41.4, "41"), (12345, "12,345")])
def test_a_rate_is_whole_from_ten_on(value: float, text: str) -> None:
    assert format_rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.12345, "0.123 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (363, "6 min 3 s"),
        (3599.6, "1 h 0 min"),
        (8100, "2 h 15 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_seconds_are_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
