"""Boot protocols: what they want in memory and registers, against headers and specifications."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from builders.c_compiler import evaluate

from pyvmm import boot
from pyvmm.boot import Protocol, boot_params, linux32, linux64, pvh
from pyvmm.boot.handover import BootPlan, Handover, Module
from pyvmm.boot.memory_map import RAM, RESERVED, MemoryMapEntry, memory_map
from pyvmm.errors import KernelImageError
from pyvmm.loader.load import LoadedKernel, Placement
from pyvmm.memory import GuestMemory, HugePages
from pyvmm.units import GiB, MiB

CMDLINE = Placement("command line", 0x2_0000, 14)
SEED = bytes(range(32))
INITRD = Placement("initrd", 0x0123_4000, 0x5678)


def handover(*, initrd: Placement | None = None, **kernel: Any) -> Handover:
    names = ("linux64_entry_gpa", "linux32_entry_gpa", "pvh_entry_gpa", "multiboot_entry_gpa")
    fields = {**dict.fromkeys(names), "setup_header": None, "pvh_problem": None, **kernel}
    loaded: Any = SimpleNamespace(**fields)
    with GuestMemory.create(5 * GiB, huge_pages=HugePages.NEVER) as memory:
        return Handover(
            loaded,
            memory_map(memory),
            CMDLINE,
            initrd,
            modules=(Module(initrd, b"initrd"),) if initrd else (),
            rsdp_gpa=0xE_0000,
            rng_seed=SEED,
        )


def blob(plan: BootPlan, name: str) -> bytes:
    (found,) = (blob.data for blob in plan.blobs if blob.name == name)
    return found


def test_memory_map_keeps_off_ebda_and_bios() -> None:
    with GuestMemory.create(5 * GiB, huge_pages=HugePages.NEVER) as memory:
        assert memory_map(memory) == [
            MemoryMapEntry(0, 639 * 1024, RAM),
            MemoryMapEntry(639 * 1024, 385 * 1024, RESERVED),
            MemoryMapEntry(1 * MiB, 3 * GiB - 1 * MiB, RAM),
            MemoryMapEntry(4 * GiB, 2 * GiB, RAM),
        ]


FIELDS = {
    "acpi_rsdp_addr": boot_params.ACPI_RSDP_ADDR,
    "ext_ramdisk_image": boot_params.EXT_RAMDISK_IMAGE,
    "ext_ramdisk_size": boot_params.EXT_RAMDISK_SIZE,
    "ext_cmd_line_ptr": boot_params.EXT_CMD_LINE_PTR,
    "e820_entries": boot_params.E820_ENTRIES,
    "hdr.boot_flag": boot_params.BOOT_FLAG,
    "hdr.header": boot_params.HEADER_MAGIC,
    "hdr.version": boot_params.VERSION,
    "hdr.type_of_loader": boot_params.TYPE_OF_LOADER,
    "hdr.loadflags": boot_params.LOADFLAGS,
    "hdr.code32_start": boot_params.CODE32_START,
    "hdr.ramdisk_image": boot_params.RAMDISK_IMAGE,
    "hdr.ramdisk_size": boot_params.RAMDISK_SIZE,
    "hdr.cmd_line_ptr": boot_params.CMD_LINE_PTR,
    "hdr.kernel_alignment": boot_params.KERNEL_ALIGNMENT,
    "hdr.setup_data": boot_params.SETUP_DATA,
    "e820_table": boot_params.E820_TABLE,
}


def test_boot_params_fields_stand_where_the_header_says() -> None:
    struct_name = "struct boot_params"
    wanted = [f"offsetof({struct_name}, {name})" for name in FIELDS]
    wanted += [f"sizeof((({struct_name} *)0)->{name})" for name in FIELDS]
    wanted += [f"sizeof({struct_name})", f"offsetof({struct_name}, hdr)", "LOADED_HIGH"]
    wanted += ["QUIET_FLAG", "KEEP_SEGMENTS", "CAN_USE_HEAP", "E820_MAX_ENTRIES_ZEROPAGE"]
    ours = [field.offset for field in FIELDS.values()]
    ours += [field.size for field in FIELDS.values()]
    ours += [boot_params.SIZE_BYTES, boot_params.SETUP_HEADER.offset, boot_params.LOADED_HIGH]
    ours += [boot_params.QUIET_FLAG, boot_params.KEEP_SEGMENTS, boot_params.CAN_USE_HEAP]
    ours += [boot_params.E820_MAX_ENTRIES]
    assert evaluate(["linux/types.h", "asm/bootparam.h"], wanted) == ours


def test_boot_params_of_a_vmlinux_has_a_minimal_header() -> None:
    page = boot_params.build(handover(linux64_entry_gpa=0x100_0000, initrd=INITRD))
    assert len(page) == 4096
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert page[0x218:0x220] == struct.pack("<II", 0x0123_4000, 0x5678)
    assert page[0x228:0x22C] == struct.pack("<I", 0x2_0000)
    assert page[0x1EF] == 0  # the sentinel: a loader that copied too much leaves it set


@pytest.mark.parametrize("protocol", [linux64, linux32])
def test_boot_params_lead_to_acpi_and_to_the_seed(protocol: Any) -> None:
    plan = protocol.plan(handover(linux64_entry_gpa=0x100_0000), 0x100_0000)
    page = blob(plan, "boot_params")
    assert struct.unpack_from("<Q", page, 0x70) == (0xE_0000,)
    (setup_data_gpa,) = struct.unpack_from("<Q", page, 0x250)
    (data,) = (each.data for each in plan.blobs if each.gpa == setup_data_gpa)
    # struct setup_data of asm/setup_data.h: next, type (SETUP_RNG_SEED is 9), len, data
    assert struct.unpack_from("<QII", data) == (0, 9, 32)
    assert data[16:] == SEED


def test_boot_params_carries_the_memory_map() -> None:
    page = boot_params.build(handover(linux64_entry_gpa=0x100_0000))
    assert page[0x1E8] == 4
    assert struct.unpack_from("<QQI", page, 0x2D0) == (0, 0x9FC00, 1)
    assert struct.unpack_from("<QQI", page, 0x2D0 + 3 * 20) == (4 * GiB, 2 * GiB, 1)


def test_boot_params_without_initrd_says_none() -> None:
    page = boot_params.build(handover(linux64_entry_gpa=0x100_0000))
    assert page[0x218:0x220] == bytes(8)


def test_boot_params_copies_exactly_the_images_header() -> None:
    raw = bytes(range(1, 120))
    header = SimpleNamespace(raw=raw)
    page = boot_params.build(handover(linux64_entry_gpa=0x100_0000, setup_header=header))
    assert page[0x1F1:0x1FE] == raw[: 0x1FE - 0x1F1]
    assert page[0x1F1 + 119 : 0x290] == bytes(0x290 - 0x1F1 - 119)
    assert page[0x1EF:0x1F1] == bytes(2)


def test_boot_params_header_that_overruns_its_place_is_refused() -> None:
    header = SimpleNamespace(raw=bytes(0x290 - 0x1F1 + 1))
    with pytest.raises(KernelImageError, match="setup header is 160 bytes"):
        boot_params.build(handover(linux64_entry_gpa=0x100_0000, setup_header=header))


def test_boot_params_code32_start_names_where_the_kernel_was_put() -> None:
    header = SimpleNamespace(raw=bytes(0x77))
    page = boot_params.build(handover(linux32_entry_gpa=0x200_0000, setup_header=header))
    assert page[0x214:0x218] == struct.pack("<I", 0x200_0000)


def test_linux64_enters_long_mode_over_an_identity_map() -> None:
    plan = linux64.plan(handover(linux64_entry_gpa=0x100_0B53), 0x100_0B53)
    entry = plan.entry
    assert entry.rip == 0x100_0B53
    assert entry.rsi == 0x7000
    assert entry.cr0 == 0x8000_0011
    assert entry.cr4 == 0x20
    assert entry.efer == 0x500
    assert entry.rflags == 2
    assert (entry.code.selector, entry.data.selector) == (0x10, 0x18)
    assert (entry.code.l, entry.code.db) == (1, 0)


def test_linux32_enters_protected_mode_without_paging() -> None:
    entry = linux32.plan(handover(linux32_entry_gpa=0x10_0000), 0x10_0000).entry
    assert (entry.rip, entry.rsi, entry.rbx) == (0x10_0000, 0x7000, 0)
    assert (entry.cr0 & 0x8000_0001, entry.cr4, entry.efer) == (1, 0, 0)
    assert (entry.code.selector, entry.data.selector) == (0x10, 0x18)
    assert (entry.code.l, entry.code.db) == (0, 1)


def test_pvh_enters_protected_mode_with_start_info_in_ebx() -> None:
    entry = pvh.plan(handover(pvh_entry_gpa=0x100_0000), 0x100_0000).entry
    assert (entry.rip, entry.rbx, entry.rflags) == (0x100_0000, 0x6000, 2)
    assert (entry.cr0 & 0x8000_0001, entry.cr4, entry.efer) == (1, 0, 0)


def test_pvh_start_info_is_laid_out_as_xen_says() -> None:
    plan = pvh.plan(handover(pvh_entry_gpa=0x100_0000, initrd=INITRD), 0x100_0000)
    page = blob(plan, "start_info")
    # xen/include/public/arch-x86/hvm/start_info.h: the offsets drawn in its comment
    assert struct.unpack_from("<I", page, 0) == (0x336E_C578,)
    assert struct.unpack_from("<I", page, 4) == (1,)
    assert struct.unpack_from("<I", page, 12) == (1,)
    (modlist_gpa,) = struct.unpack_from("<Q", page, 16)
    assert struct.unpack_from("<Q", page, 24) == (0x2_0000,)
    assert struct.unpack_from("<Q", page, 32) == (0xE_0000,)
    (memmap_gpa,) = struct.unpack_from("<Q", page, 40)
    assert struct.unpack_from("<I", page, 48) == (4,)
    assert struct.unpack_from("<QQQQ", page, modlist_gpa - 0x6000) == (0x0123_4000, 0x5678, 0, 0)
    assert struct.unpack_from("<QQII", page, memmap_gpa - 0x6000) == (0, 0x9FC00, 1, 0)
    assert struct.unpack_from("<QQII", page, memmap_gpa - 0x6000 + 3 * 24) == (
        4 * GiB, 2 * GiB, 1, 0,
    )  # fmt: skip


def test_pvh_without_initrd_has_no_modules() -> None:
    page = blob(pvh.plan(handover(pvh_entry_gpa=0x100_0000), 0x100_0000), "start_info")
    assert struct.unpack_from("<I", page, 12) == (0,)
    assert struct.unpack_from("<Q", page, 16) == (0,)


def test_blobs_do_not_overlap() -> None:
    for plan in (
        pvh.plan(handover(pvh_entry_gpa=0x100_0000, initrd=INITRD), 0x100_0000),
        linux64.plan(handover(linux64_entry_gpa=0x100_0000), 0x100_0000),
        linux32.plan(handover(linux32_entry_gpa=0x100_0000), 0x100_0000),
    ):
        ends = 0
        for blob in sorted(plan.blobs, key=lambda blob: blob.gpa):
            assert blob.gpa >= ends, blob.name
            ends = blob.gpa + len(blob.data)
        assert ends <= 0x2_0000  # the command line


ALL: dict[str, Any] = {"linux64_entry_gpa": 1, "linux32_entry_gpa": 2, "pvh_entry_gpa": 3}


@pytest.mark.parametrize(
    ("requested", "absent", "expected"),
    [
        (Protocol.AUTO, [], (Protocol.PVH, 3)),
        (Protocol.AUTO, ["pvh_entry_gpa"], (Protocol.LINUX64, 1)),
        (Protocol.AUTO, ["pvh_entry_gpa", "linux64_entry_gpa"], (Protocol.LINUX32, 2)),
        (Protocol.LINUX64, [], (Protocol.LINUX64, 1)),
        (Protocol.LINUX32, [], (Protocol.LINUX32, 2)),
        (Protocol.PVH, [], (Protocol.PVH, 3)),
    ],
)
def test_choose_takes(
    requested: Protocol, absent: list[str], expected: tuple[Protocol, int]
) -> None:
    kernel: LoadedKernel = handover(**{**ALL, **dict.fromkeys(absent)}).kernel
    assert boot.choose(requested, kernel) == expected


@pytest.mark.parametrize(
    ("requested", "kernel", "message"),
    [
        (Protocol.PVH, {"linux64_entry_gpa": 1}, "no PVH note.*offers linux64"),
        (
            Protocol.PVH,
            {"linux64_entry_gpa": 1, "pvh_problem": "too short"},
            "cannot be used .too short",
        ),
        (Protocol.PVH, {"linux32_entry_gpa": 1}, "--decompress host"),
        (Protocol.LINUX32, {"linux64_entry_gpa": 1}, "--decompress guest"),
        (Protocol.LINUX64, {"linux32_entry_gpa": 1}, "not a 64-bit kernel"),
        (Protocol.AUTO, {}, "no entry at all"),
    ],
)
def test_choose_explains_what_is_not_there(
    requested: Protocol, kernel: dict[str, Any], message: str
) -> None:
    with pytest.raises(KernelImageError, match=message):
        boot.choose(requested, handover(**kernel).kernel)
