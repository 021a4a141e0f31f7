"""Sizes as people write them."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.units import align_down, align_up, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512M", 536_870_912),
        ("512m", 536_870_912),
        ("512MiB", 536_870_912),
        ("512MB", 536_870_912),
        ("5GiB", 5_368_709_120),
        ("64k", 65_536),
        ("131072", 131_072),
        ("131072B", 131_072),
        ("0x4000", 16_384),
        ("0xb", 11),
        (" 1G ", 1_073_741_824),
    ],
)
def test_parse_size_reads(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "M", "512X", "1.5G", "-1M", "1e6", "0x", "0xZZ", "12KMG", "½"]
)
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1 << 10, "1 KiB"),
        (5 << 30, "5 GiB"),
        (1536 << 20, "1536 MiB"),
    ],
)
def test_format_size_uses_the_largest_whole_unit(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_align_keeps_what_is_aligned() -> None:
    assert align_up(0x2000, 0x1000) == align_down(0x2000, 0x1000) == 0x2000


def test_align_moves_what_is_not() -> None:
    assert align_up(0x2001, 0x1000) == 0x3000
    assert align_down(0x2FFF, 0x1000) == 0x2000
