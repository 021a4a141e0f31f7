"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

from pyvmm.errors import ConfigError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

PAGE_SIZE = 4 * KiB

_SUFFIXES = {"": 1, "b": 1, "k": KiB, "m": MiB, "g": GiB}


def parse_size(text: str) -> int:
    """The bytes that ``text`` stands for: ``512M``, ``5GiB``, ``0x4000``, ``131072``.

    K, M and G are powers of 1024, in either case, with an optional ``B`` or ``iB``.

    Raises ConfigError if ``text`` is not a size.
    """
    body = text.strip().lower()
    hexadecimal = body.startswith("0x")
    if not hexadecimal:
        body = body.removesuffix("ib") if body.endswith("ib") else body.removesuffix("b")
    digits = body if hexadecimal else body.rstrip("kmg")
    suffix = body[len(digits) :]
    try:
        number = int(digits, 0 if hexadecimal else 10)
        if number < 0:
            raise ValueError
        return number * _SUFFIXES[suffix]
    except (ValueError, KeyError):
        raise ConfigError(
            f"{text!r} is not a size; expected a number with an optional K, M or G, such as 512M"
        ) from None


def format_size(size_bytes: int) -> str:
    """``size_bytes`` in the largest binary unit that leaves no fraction: ``512 MiB``."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} bytes"


def align_up(value: int, alignment: int) -> int:
    """The lowest multiple of ``alignment`` (a power of two) that is at least ``value``."""
    return (value + alignment - 1) & -alignment


def align_down(value: int, alignment: int) -> int:
    """The highest multiple of ``alignment`` (a power of two) that is at most ``value``."""
    return value & -alignment
