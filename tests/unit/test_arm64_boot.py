"""Debian's arm64 kernels in memory that we prepared, on a machine that our devicetree describes.

QEMU emulates the machine. It is given our guest memory as it is, and enters it at a few
instructions that do what a boot loader does last: x0 is the devicetree, branch to the kernel.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from builders.cli import Running
from builders.ram import ram_at
from builders.stock_kernels import stock_kernel

from pyvmm.arch.devicetree import ARM64_RAM_GPA, VirtMachine, build_arm64
from pyvmm.loader import arm64
from pyvmm.loader.fdt import place_fdt
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import Placement
from pyvmm.units import MiB

RAM_BYTES = 256 * MiB
# QEMU puts a devicetree of its own at the start of RAM, in up to 1 MiB.
START_GPA = ARM64_RAM_GPA + 1 * MiB
DEVICETREE_GPA = START_GPA + 4096
KERNEL_BASE_GPA = ARM64_RAM_GPA + 2 * MiB
INITRD_GPA = ARM64_RAM_GPA + 128 * MiB
CMDLINE = "console=ttyAMA0 panic=-1 devicetree=ours"

# Arm ARM, C6.2: ldr x0, .+16; ldr x4, .+20; br x4; nop; then the two words that are loaded.
START = struct.Struct("<4I2Q")
LDR_X0, LDR_X4, BR_X4, NOP = 0x5800_0080, 0x5800_00A4, 0xD61F_0080, 0xD503_201F

LIMIT_S = 100.0


def prepare_memory(kernel: str, path: Path) -> None:
    """Write to ``path`` what is in RAM from START_GPA on."""
    with ram_at(ARM64_RAM_GPA, RAM_BYTES) as memory, KernelImage.open(kernel) as image:
        placed = arm64.place(image, memory, KERNEL_BASE_GPA)
        initrd = Placement("initrd", INITRD_GPA, 512)
        assert placed.end_gpa <= initrd.base_gpa
        memory.write(initrd.base_gpa, b"no archive")
        machine = VirtMachine([(ARM64_RAM_GPA, RAM_BYTES)], 2, CMDLINE, initrd)
        place_fdt(build_arm64(machine), memory, DEVICETREE_GPA)
        words = (LDR_X0, LDR_X4, BR_X4, NOP, DEVICETREE_GPA, placed.entry_gpa)
        memory.write(START_GPA, START.pack(*words))
        with path.open("wb") as file:
            file.write(memory.view(START_GPA, initrd.end_gpa - START_GPA))


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("name", ["debian:6.1-arm64", "debian:6.12-arm64"])
def test_stock_arm64_kernel_boots_where_it_was_placed(name: str, tmp_path: Path) -> None:
    if shutil.which("qemu-system-aarch64") is None:
        pytest.skip("qemu-system-aarch64 (package qemu-system-arm) is not installed")
    ram = tmp_path / "ram"
    prepare_memory(stock_kernel(name).path, ram)
    command = ["qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", "cortex-a57"]
    command += ["-smp", "2", "-m", f"{RAM_BYTES // MiB}M", "-nic", "none"]
    command += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
    command += ["-device", f"loader,file={ram},addr={START_GPA:#x},force-raw=on"]
    command += ["-device", f"loader,addr={START_GPA:#x},cpu-num=0"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as qemu:
        try:
            guest = Running(qemu)
            # The console is the UART of the devicetree, and with it come all earlier messages.
            guest.wait_for(b"] Initramfs unpacking failed: ", LIMIT_S)
        finally:
            qemu.kill()
    said = guest.output.decode()
    assert "] Machine model: pyvmm,virt" in said
    assert f"] Kernel command line: {CMDLINE}" in said
    assert "[mem 0x0000000040000000-0x000000004fffffff]" in said
    assert "] psci: PSCIv1." in said
    assert "] smp: Brought up 1 node, 2 CPUs" in said
    assert "] 9000000.serial: ttyAMA0 at MMIO 0x9000000" in said
