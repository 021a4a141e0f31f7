"""Multiboot kernels, told what `pyvmm run` was given: one of our own, and other people's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from build_guest import build
from builders.elf_oracle import open_elf
from builders.stock_kernels import PYVMM, package_file

from pyvmm.config import MachineConfig
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import load_kernel
from pyvmm.machine import Machine
from pyvmm.memory import GuestMemory
from pyvmm.outcome import Outcome
from pyvmm.units import MiB

pytestmark = pytest.mark.boot


def run(*options: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [*PYVMM, "run", "--mem", "16M", "--timeout", "30", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode, result.stdout, result.stderr


def test_multiboot_kernel_is_told_its_command_line_and_modules(tmp_path: Path) -> None:
    kernel = build("hello_multiboot", str(tmp_path))
    (tmp_path / "first").write_bytes(b"one\nrest")
    (tmp_path / "second").write_bytes(b"two" + bytes(5000))
    status, console, messages = run(
        *("--kernel", kernel, "--cmdline", "a=b c"),
        *("--initrd", str(tmp_path / "first")),
        *("--module", f"{tmp_path / 'second'} x  y"),
    )
    assert (status, messages) == (0, "pyvmm: the guest powered itself off\n")
    assert console.splitlines() == [
        "cmdline: hello_multiboot.elf a=b c",
        "module: first = one",
        "module: second x  y = two",
        "loader: pyvmm",
    ]


def test_modules_for_a_kernel_without_a_way_to_have_them_are_refused(tmp_path: Path) -> None:
    kernel = build("hello_pvh", str(tmp_path))
    (tmp_path / "file").write_bytes(b"x")
    status, _, messages = run(
        *("--kernel", kernel, "--protocol", "linux64", "--module", str(tmp_path / "file"))
    )
    assert status == 2
    assert "entered by linux64, which knows of no modules but the initrd" in messages


def test_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    kernel = build("hello_multiboot", str(tmp_path))
    status, _, messages = run("--kernel", kernel, "--module", str(tmp_path / "none"))
    assert status == 2
    assert "none: there is no such file; expected a module" in messages


def test_module_without_a_name_is_refused(tmp_path: Path) -> None:
    status, _, messages = run("--module", " ")
    assert status == 2
    assert "--module ' ' names no file" in messages


def test_empty_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    kernel = build("hello_multiboot", str(tmp_path))
    status, _, messages = run("--kernel", kernel, "--module", str(tmp_path / "empty"))
    assert status == 2
    assert "empty: is empty; a module must have at least one byte" in messages


# Other people's kernels.

VGA_TEXT_GPA, COLUMNS, ROWS = 0xB_8000, 80, 25  # two bytes each: a character and its colours


def test_example_kernel_of_the_specification_shows_what_it_is_told(tmp_path: Path) -> None:
    kernel = package_file("multiboot", "usr/lib/multiboot/examples/kernel")
    (tmp_path / "first").write_bytes(b"1" * 0x1234)
    (tmp_path / "second").write_bytes(b"2")
    config = MachineConfig(
        kernel=kernel,
        cmdline="a=b c",
        initrd=str(tmp_path / "first"),
        modules=((str(tmp_path / "second"), "x  y"),),
        memory_bytes=64 * MiB,
    )
    with Machine(config, bytes) as machine:
        assert machine.run(timeout_s=30).outcome is Outcome.HALTED
        screen = machine.memory.read(VGA_TEXT_GPA, COLUMNS * ROWS * 2)[::2]
    lines = [
        screen[start : start + COLUMNS].decode("ascii").rstrip("\0 ")
        for start in range(0, len(screen), COLUMNS)
    ]
    assert [re.sub("(mods_|mmap_)addr = 0x[0-9a-f]+", r"\1addr = ADDR", line) for line in lines][
        :12
    ] == [
        "flags = 0x24d",
        "mem_lower = 639KB, mem_upper = 64512KB",
        "cmdline = kernel a=b c",
        "mods_count = 2, mods_addr = ADDR",
        " mod_start = 0x3ffe000, mod_end = 0x3fff234, cmdline = first",
        " mod_start = 0x3ffd000, mod_end = 0x3ffd001, cmdline = second x  y",
        "mmap_addr = ADDR, mmap_length = 0x48",
        " size = 0x14, base_addr = 0x000000000, length = 0x00009fc00, type = 0x1",
        " size = 0x14, base_addr = 0x00009fc00, length = 0x000060400, type = 0x2",
        " size = 0x14, base_addr = 0x000100000, length = 0x003f00000, type = 0x1",
        "Halted.",
        "",
    ]


def test_grub_invaders_has_its_bss_where_its_sections_say() -> None:
    # Its program headers end with .data; the BSS is in the Multiboot header alone.
    path = package_file("grub-invaders", "boot/invaders.exec")
    bss = open_elf(Path(path).read_bytes()).get_section_by_name(".bss")
    with KernelImage.open(path) as image, GuestMemory.create(16 * MiB) as memory:
        assert load_kernel(image, memory).end_gpa == bss["sh_addr"] + bss["sh_size"]
