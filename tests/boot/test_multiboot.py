"""A Multiboot kernel of our own, told what `pyvmm run` was given."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from build_guest import build
from builders.stock_kernels import PYVMM

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
