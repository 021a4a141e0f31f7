"""A unified kernel image as the documentation of systemd-stub(7) says to make one: with objcopy.

The sections are added behind those of the stub, each at a multiple of the stub's SectionAlignment.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from builders.stock_kernels import package_file


def make_systemd_uki(directory: Path, linux: str, initrd: str, cmdline: str) -> Path:
    """A UKI of the files ``linux`` and ``initrd`` in ``directory``; ``cmdline`` is a line."""
    if shutil.which("objcopy") is None:
        pytest.skip("objcopy (package binutils) is not installed")
    stub = package_file("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
    (directory / "cmdline").write_text(f"{cmdline}\n")
    (directory / "osrel").write_text("ID=debian\n")
    said = subprocess.run(
        ["objdump", "-h", "-p", stub], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"^SectionAlignment\s+(\w+)", said, re.MULTILINE)
    assert found, said
    alignment = int(found[1], 16)
    rows = re.findall(r"^ +\d+ \.\S+ +(\w+)  (\w+)", said, re.MULTILINE)
    end = max(int(size, 16) + int(address, 16) for size, address in rows)

    command = ["objcopy"]
    for name, path in (
        (".osrel", directory / "osrel"),
        (".cmdline", directory / "cmdline"),
        (".initrd", Path(initrd)),
        (".linux", Path(linux)),
    ):
        start = -(-end // alignment) * alignment
        command += ["--add-section", f"{name}={path}", "--change-section-vma", f"{name}={start:#x}"]
        end = start + path.stat().st_size
    uki = directory / "uki.efi"
    subprocess.run([*command, stub, uki], check=True)
    return uki
