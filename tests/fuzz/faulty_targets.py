"""Parsers with a fault each: fuzzing must find it."""

from __future__ import annotations

from fuzz.targets import Target

from pyvmm.errors import HostError, KernelImageError
from pyvmm.units import MiB


def raise_key_error(data: bytes) -> None:
    if data[:1] == b"B":
        raise KeyError("B")


def blame_the_host(data: bytes) -> None:
    if data[:1] == b"B":
        raise HostError("no memory")


def say_two_lines(data: bytes) -> None:
    if data[:1] == b"B":
        raise KernelImageError("one\ntwo")


def hang(data: bytes) -> None:
    while data[:1] == b"B":
        pass


def hoard(data: bytes) -> None:
    held = b"x" * (400 * MiB) if data[:1] == b"B" else b""
    while held:
        pass


TARGETS = {
    function.__name__: Target(function, [b"A"])
    for function in (raise_key_error, blame_the_host, say_two_lines, hang, hoard)
}
