"""Debian's stock kernels, against pyelftools and the command-line decompressors. No KVM needed."""

from __future__ import annotations

import mmap
import shutil
import subprocess
from pathlib import Path

import pytest
from builders.elf_oracle import open_elf, pvh_entries
from builders.stock_kernels import SERIES, debian_vmlinuz

from pyvmm.loader.image import ImageFormat, KernelImage, detect
from pyvmm.loader.initrd import place_initrd
from pyvmm.loader.load import Decompress, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import MiB

# As the kernel's scripts/extract-vmlinux finds a payload: by magic, anywhere in the file.
TOOLS = {"6.1": (b"\x02\x21\x4c\x18", "lz4"), "6.12": (b"\x28\xb5\x2f\xfd", "zstd")}


@pytest.mark.parametrize("series", SERIES)
def test_stock_kernel_is_placed_as_pyelftools_reads_it(series: str, tmp_path: Path) -> None:
    with (
        GuestMemory.create(256 * MiB) as memory,
        KernelImage.open(debian_vmlinuz(series)) as image,
    ):
        assert detect(image) is ImageFormat.BZIMAGE
        vmlinux = bytes(extract_vmlinux(image))
        kernel = load_kernel(image, memory)
        oracle = open_elf(vmlinux)
        assert kernel.linux64_entry_gpa == oracle.header["e_entry"]
        segments = list(oracle.iter_segments("PT_LOAD"))
        assert [(p.base_gpa, p.size_bytes) for p in kernel.placements] == [
            (segment["p_paddr"], segment["p_memsz"]) for segment in segments
        ]
        for segment in segments:
            expected = segment.data().ljust(segment["p_memsz"], b"\x00")
            assert memory.view(segment["p_paddr"], segment["p_memsz"]) == expected
        assert [kernel.pvh_entry_gpa] == pvh_entries(oracle)
        assert kernel.pvh_problem is None

        (tmp_path / "vmlinux").write_bytes(vmlinux)
        with (
            GuestMemory.create(256 * MiB) as other,
            KernelImage.open(str(tmp_path / "vmlinux")) as extracted,
        ):
            again = load_kernel(extracted, other)
            assert again == kernel._replace(
                format=ImageFormat.ELF, setup_header=None, kernel_info=None
            )
            size_bytes = kernel.end_gpa - kernel.start_gpa
            assert other.view(kernel.start_gpa, size_bytes) == memory.view(
                kernel.start_gpa, size_bytes
            )


@pytest.mark.parametrize("series", SERIES)
def test_payload_of_stock_kernel_is_what_the_tool_makes_of_it(series: str) -> None:
    magic, tool = TOOLS[series]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    path = debian_vmlinuz(series)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        stream = mapped[mapped.find(magic) :]
    # What follows the stream makes the tool complain, behind its output.
    expected = subprocess.run([tool, "-dc"], input=stream, capture_output=True).stdout
    with KernelImage.open(path) as image:
        assert extract_vmlinux(image) == expected


@pytest.mark.parametrize("series", SERIES)
def test_stock_kernel_that_decompresses_itself(series: str) -> None:
    with (
        GuestMemory.create(256 * MiB) as memory,
        KernelImage.open(debian_vmlinuz(series)) as image,
    ):
        kernel = load_kernel(image, memory, decompress=Decompress.GUEST)
        # Debian's configuration: CONFIG_PHYSICAL_START=0x1000000, CONFIG_RELOCATABLE.
        assert kernel.linux32_entry_gpa == 0x100_0000
        assert kernel.linux64_entry_gpa == 0x100_0200
        # kernel_info.S has one number behind the sizes, SETUP_TYPE_MAX: SETUP_INDIRECT and
        # SETUP_RNG_SEED (Linux 6.0 and later).
        assert kernel.kernel_info == (b"LToP", 16, 16, 0x8000_0009)
        assert kernel.setup_header is not None
        assert kernel.end_gpa == 0x100_0000 + kernel.setup_header.init_size
        (placement,) = kernel.placements
        offset = (kernel.setup_header.setup_sects + 1) * 512
        assert (
            memory.view(placement.base_gpa, placement.size_bytes)
            == image.data[offset : offset + placement.size_bytes]
        )
        initrd = place_initrd(bytes(8 * MiB), memory, kernel)
        assert initrd is not None
        assert initrd.end_gpa == 256 * MiB
