"""The command line: boot.rst, cmdline_size and "The Kernel Command Line"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders import bzimage as bz
from builders.elf import vmlinux

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import CmdlineError
from pyvmm.loader.cmdline import place_cmdline
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import LoadedKernel, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import MiB


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        memory.write(layout.CMDLINE_GPA, b"\xff" * layout.CMDLINE_MAX_BYTES)
        yield memory


def load(memory: GuestMemory, cmdline_size: int | None = None) -> LoadedKernel:
    image = vmlinux()
    if cmdline_size is not None:
        image = bz.bzimage(bz.compress("gzip", image), cmdline_size=cmdline_size)
    return load_kernel(KernelImage.from_bytes(image), memory)


def refusal(cmdline: str | bytes, memory: GuestMemory, kernel: LoadedKernel) -> str:
    with pytest.raises(CmdlineError) as caught:
        place_cmdline(cmdline, memory, kernel)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cmdline_ends_with_a_nul(memory: GuestMemory) -> None:
    placement = place_cmdline("console=ttyS0", memory, load(memory))
    assert placement == ("command line", layout.CMDLINE_GPA, 14)
    assert memory.read(layout.CMDLINE_GPA, 15) == b"console=ttyS0\x00\xff"


def test_empty_cmdline_is_a_nul(memory: GuestMemory) -> None:
    assert place_cmdline("", memory, load(memory)).size_bytes == 1
    assert memory.read_u8(layout.CMDLINE_GPA) == 0


def test_cmdline_is_utf_8(memory: GuestMemory) -> None:
    place_cmdline("motd=gr\u00fc\u00df", memory, load(memory))
    assert memory.read(layout.CMDLINE_GPA, 12) == b"motd=gr\xc3\xbc\xc3\x9f\x00"


def test_bytes_of_argv_that_are_no_utf_8_pass_through(memory: GuestMemory) -> None:
    place_cmdline(b"x=\xff".decode("utf-8", "surrogateescape"), memory, load(memory))
    assert memory.read(layout.CMDLINE_GPA, 4) == b"x=\xff\x00"


def test_cmdline_of_bytes(memory: GuestMemory) -> None:
    place_cmdline(b"x=\xfe", memory, load(memory))
    assert memory.read(layout.CMDLINE_GPA, 4) == b"x=\xfe\x00"


@pytest.mark.parametrize("cmdline", ["quiet\x00debug", b"quiet\x00debug"])
def test_nul_is_refused(memory: GuestMemory, cmdline: str | bytes) -> None:
    assert "has a NUL at byte 5" in refusal(cmdline, memory, load(memory))


def test_character_without_encoding_is_refused(memory: GuestMemory) -> None:
    assert "'\\ud800' at position 2" in refusal("x=\ud800", memory, load(memory))


@pytest.mark.parametrize(
    ("cmdline_size", "limit"),
    [
        (255, 255),
        (2047, 2047),
        (None, 2047),  # COMMAND_LINE_SIZE is 2048, the NUL included
        (0xFFFF_FFFF, 65535),  # our own place for it
        (0, 0),
    ],
)
def test_cmdline_may_be_as_long_as_the_kernel_takes(
    memory: GuestMemory, cmdline_size: int | None, limit: int
) -> None:
    kernel = load(memory, cmdline_size)
    place_cmdline("x" * limit, memory, kernel)
    assert memory.read(layout.CMDLINE_GPA, limit + 1) == b"x" * limit + b"\x00"
    message = refusal("x" * (limit + 1), memory, kernel)
    assert f"has {limit + 1} bytes; this kernel takes at most {limit}" in message


@pytest.mark.parametrize(
    ("cmdline", "rule"),
    [
        ("a\ud800", "cmdline-encoding"),
        ("a\x00b", "cmdline-nul"),
        ("x" * 2048, "cmdline-size"),
    ],
)
def test_refusal_has_its_rule(memory: GuestMemory, cmdline: str, rule: str) -> None:
    with pytest.raises(CmdlineError) as caught:
        place_cmdline(cmdline, memory, load(memory))
    assert caught.value.rule == rule


def test_length_is_counted_in_bytes(memory: GuestMemory) -> None:
    assert "has 2048 bytes" in refusal("\u00e9" * 1024, memory, load(memory))
