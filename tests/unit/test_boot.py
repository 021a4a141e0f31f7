"""Boot protocols: what they want in memory and registers, against headers and specifications."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from builders.c_compiler import evaluate

from pyvmm import boot
from pyvmm.boot import Protocol, boot_params, linux32, linux64, multiboot, pvh
from pyvmm.boot.handover import BootPlan, Handover, Module
from pyvmm.boot.memory_map import RAM, RESERVED, MemoryMapEntry, memory_map
from pyvmm.boot.screen_info import ScreenInfo
from pyvmm.errors import FetchError, GuestMemoryError, KernelImageError
from pyvmm.fetch import fetch_package_file
from pyvmm.loader.bzimage import KernelInfo
from pyvmm.loader.image import ImageFormat
from pyvmm.loader.load import LoadedKernel, Placement
from pyvmm.memory import GuestMemory, HugePages
from pyvmm.units import GiB, MiB

CMDLINE = Placement("command line", 0x2_0000, 14)
SEED = bytes(range(32))
INITRD = Placement("initrd", 0x0123_4000, 0x5678)


def handover(*, initrd: Placement | None = None, **kernel: Any) -> Handover:
    entries = ("linux64_entry_gpa", "linux32_entry_gpa", "pvh_entry_gpa", "multiboot_entry_gpa")
    others = ("format", "setup_header", "kernel_info", "move", "pvh_problem")
    fields = {**dict.fromkeys(entries + others), **kernel}
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
    "screen_info": boot_params.SCREEN_INFO,
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
    wanted += ["KASLR_FLAG", "QUIET_FLAG", "KEEP_SEGMENTS", "CAN_USE_HEAP"]
    wanted += ["E820_MAX_ENTRIES_ZEROPAGE", "(unsigned)SETUP_INDIRECT"]
    ours = [field.offset for field in FIELDS.values()]
    ours += [field.size for field in FIELDS.values()]
    ours += [boot_params.SIZE_BYTES, boot_params.SETUP_HEADER.offset, boot_params.LOADED_HIGH]
    ours += [boot_params.KASLR_FLAG, boot_params.QUIET_FLAG, boot_params.KEEP_SEGMENTS]
    ours += [boot_params.CAN_USE_HEAP, boot_params.E820_MAX_ENTRIES, boot_params.SETUP_INDIRECT]
    assert evaluate(["linux/types.h", "asm/bootparam.h"], wanted) == ours


def struct_of(
    headers: list[str], struct_name: str, fields: Sequence[str]
) -> tuple[int, list[tuple[int, int]]]:
    """The compiler's word: a struct's size, and the offset and size of each of its fields."""
    wanted = [f"sizeof({struct_name})"]
    for name in fields:
        wanted += [f"offsetof({struct_name}, {name})", f"sizeof((({struct_name} *)0)->{name})"]
    size, *numbers = evaluate(headers, wanted)
    return size, list(zip(numbers[::2], numbers[1::2], strict=True))


def check_layout(value: Any, packed: bytes, size: int, places: list[tuple[int, int]]) -> None:
    """Each field of ``value`` must be where the compiler puts it, and nothing be elsewhere."""
    assert len(packed) == size
    rebuilt = bytearray(size)
    for number, (offset, width) in zip(value, places, strict=True):
        assert number >> (8 * (width - 1)), "each byte of each field must be used"
        rebuilt[offset : offset + width] = number.to_bytes(width, "little")
    assert packed == rebuilt


def filled(cls: Any, places: list[tuple[int, int]]) -> Any:
    """A value in which each byte of each field is another one."""
    return cls(
        *(
            int.from_bytes(bytes((index * 8 + byte) % 255 + 1 for byte in range(width)), "little")
            for index, (_, width) in enumerate(places)
        )
    )


def test_screen_info_has_the_layout_of_the_header() -> None:
    names = [name if name != "reserved" else "_reserved" for name in ScreenInfo._fields]
    size, places = struct_of(["linux/types.h", "linux/screen_info.h"], "struct screen_info", names)
    assert size == boot_params.SCREEN_INFO.size
    value = filled(ScreenInfo, places)
    check_layout(value, value.pack(), size, places)


def test_screen_info_is_zero_unless_there_is_a_screen() -> None:
    plain = handover(linux64_entry_gpa=0x100_0000)
    assert boot_params.build(plain)[:64] == bytes(64)
    assert ScreenInfo().pack() == bytes(64)
    screen = ScreenInfo(orig_video_mode=3, orig_video_cols=80, orig_video_lines=25)
    page = boot_params.build(plain._replace(screen_info=screen))
    # offsets: the comments in linux/screen_info.h
    assert (page[0x06], page[0x07], page[0x0E]) == (3, 80, 25)
    assert page[64:] == boot_params.build(plain)[64:]


def test_e820_entries_have_the_layout_of_the_header() -> None:
    size, places = struct_of(
        ["linux/types.h", "asm/bootparam.h"],
        "struct boot_e820_entry",
        ("addr", "size", "type"),
    )
    entry = filled(MemoryMapEntry, places)
    page = boot_params.build(handover(linux64_entry_gpa=1)._replace(memory_map=[entry, entry]))
    for start in (0x2D0, 0x2D0 + size):
        check_layout(entry, page[start : start + size], size, places)
    assert page[0x1E8] == 2


def test_setup_data_has_the_layout_of_the_header() -> None:
    size, places = struct_of(
        ["linux/types.h", "asm/bootparam.h"], "struct setup_data", ("next", "type", "len")
    )
    assert (size, places) == (16, [(0, 8), (8, 4), (12, 4)])


def test_setup_data_nodes_lead_to_one_another() -> None:
    nodes = [(9, b"seed"), (1, b"x" * 17), (5, b"")]
    packed = boot_params.setup_data_list(nodes, 0x1_0000)
    found, gpa = [], 0x1_0000
    while gpa:
        assert gpa % 8 == 0
        gpa, kind, length = struct.unpack_from("<QII", packed, start := gpa - 0x1_0000)
        found.append((kind, packed[start + 16 : start + 16 + length]))
    assert found == nodes


def test_setup_data_may_fill_its_room_and_no_more() -> None:
    room = 0x2_0000 - 0x1_0000 - 16  # up to the command line, less the node's header
    assert len(boot_params.setup_data_list([(9, bytes(room))], 0x1_0000)) == 0x1_0000
    with pytest.raises(GuestMemoryError, match="has 65537 bytes") as caught:
        boot_params.setup_data_list([(9, bytes(room + 1))], 0x1_0000)
    assert caught.value.rule == "setup-data-room"


@pytest.mark.parametrize(
    ("setup_type_max", "expected"),
    [(9, True), (0x8000_0009, True), (8, False), (0x8000_0008, False)],
)
def test_kernel_gets_no_setup_data_that_it_does_not_know(
    setup_type_max: int, expected: bool
) -> None:
    info = KernelInfo(b"LToP", 16, 16, setup_type_max)
    given = handover(linux64_entry_gpa=1, kernel_info=info)
    assert bool(boot_params.setup_data(given)) is expected
    assert struct.unpack_from("<Q", boot_params.build(given), 0x250) == (0x1_0000 * expected,)


def test_boot_params_tells_a_moved_kernel_so() -> None:
    for header in (None, SimpleNamespace(raw=bytes(0x20) + b"\x01" + bytes(0x56))):
        still = handover(linux64_entry_gpa=1, setup_header=header)
        moved = handover(linux64_entry_gpa=1, setup_header=header, move=(0, 0, 0))
        assert boot_params.build(still)[0x211] == 0x01
        assert boot_params.build(moved)[0x211] == 0x03  # boot.rst: bit 1, KASLR_FLAG


def test_boot_params_takes_128_e820_entries_and_no_more() -> None:
    entry = MemoryMapEntry(0x10_0000, 0x1000, RAM)
    given = handover(linux64_entry_gpa=1)
    page = boot_params.build(given._replace(memory_map=[entry] * 128))
    assert page[0x1E8] == 128
    assert page[0x2D0 + 128 * 20 :] == bytes(4096 - 0x2D0 - 128 * 20)
    with pytest.raises(GuestMemoryError, match="has 129 entries") as caught:
        boot_params.build(given._replace(memory_map=[entry] * 129))
    assert caught.value.rule == "boot-params-e820-entries"


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
    with pytest.raises(KernelImageError, match="setup header is 160 bytes") as caught:
        boot_params.build(handover(linux64_entry_gpa=0x100_0000, setup_header=header))
    assert caught.value.rule == "boot-params-header"


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


@pytest.fixture(scope="session")
def start_info_h() -> str:
    """Xen's header, from the distribution's package."""
    try:
        return fetch_package_file("libxen-dev", r"usr/include/xen/arch-x86/hvm/start_info\.h")
    except FetchError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("struct_name", "cls"),
    [
        ("struct hvm_start_info", pvh.StartInfo),
        ("struct hvm_modlist_entry", pvh.ModlistEntry),
        ("struct hvm_memmap_table_entry", pvh.MemmapTableEntry),
    ],
)
def test_pvh_structs_have_the_layout_of_xens_header(
    struct_name: str, cls: Any, start_info_h: str
) -> None:
    size, places = struct_of(["stdint.h", start_info_h], struct_name, cls._fields)
    value = filled(cls, places)
    check_layout(value, value.pack(), size, places)


def test_pvh_constants_are_those_of_xens_header(start_info_h: str) -> None:
    wanted = ["XEN_HVM_MEMMAP_TYPE_RAM", "XEN_HVM_MEMMAP_TYPE_RESERVED"]
    wanted.append("XEN_HVM_START_MAGIC_VALUE")
    assert evaluate(["stdint.h", start_info_h], wanted) == [RAM, RESERVED, pvh.START_MAGIC]


def test_pvh_start_info_leads_to_everything() -> None:
    plan = pvh.plan(handover(pvh_entry_gpa=0x100_0000, initrd=INITRD), 0x100_0000)
    info = struct.unpack("<IIIIQQQQII", blob(plan, "start_info"))
    modlist, memmap = blob(plan, "module list"), blob(plan, "PVH memory map")
    places = {blob.name: blob.gpa for blob in plan.blobs}
    # magic, version, flags, nr_modules, then addresses: modules, command line, ACPI, memory map
    assert info[:4] == (0x336E_C578, 1, 0, 1)
    assert info[4:8] == (places["module list"], 0x2_0000, 0xE_0000, places["PVH memory map"])
    assert info[8:] == (4, 0)
    assert struct.unpack("<QQQQ", modlist) == (0x0123_4000, 0x5678, 0, 0)
    entries = list(struct.iter_unpack("<QQII", memmap))
    assert entries[0] == (0, 0x9FC00, 1, 0)
    assert entries[3] == (4 * GiB, 2 * GiB, 1, 0)


def test_pvh_without_initrd_has_no_modules() -> None:
    plan = pvh.plan(handover(pvh_entry_gpa=0x100_0000), 0x100_0000)
    page = blob(plan, "start_info")
    assert struct.unpack_from("<I", page, 12) == (0,)
    assert struct.unpack_from("<Q", page, 16) == (0,)
    assert "module list" not in [blob.name for blob in plan.blobs]


def with_modules(count: int, cmdline: bytes = b"", *, ranges: int = 0) -> Handover:
    entry = MemoryMapEntry(0x10_0000, 0x1000, RAM)
    module = Module(INITRD, b"module", cmdline)
    return handover(pvh_entry_gpa=1)._replace(
        memory_map=[entry] * ranges, modules=(module,) * count
    )


@pytest.mark.parametrize(
    ("rule", "fitting", "one_too_many"),
    [
        # start_info.h: 56 bytes, 32 for each module, 24 for each range
        ("pvh-modlist-room", with_modules(126), with_modules(127)),
        ("pvh-memmap-room", with_modules(1, ranges=167), with_modules(1, ranges=168)),
        ("pvh-strings-room", with_modules(1, b"x" * 4007), with_modules(1, b"x" * 4008)),
    ],
)
def test_pvh_tables_may_fill_the_page_and_no_more(
    rule: str, fitting: Handover, one_too_many: Handover
) -> None:
    blobs = pvh.plan(fitting, 1).blobs
    assert max(blob.gpa + len(blob.data) for blob in blobs) <= 0x7000
    with pytest.raises(KernelImageError, match="the page of start_info ends") as caught:
        pvh.plan(one_too_many, 1)
    assert caught.value.rule == rule


def test_pvh_modules_have_their_command_lines() -> None:
    modules = (Module(INITRD, b"a", b"first one"), Module(INITRD, b"b"), Module(INITRD, b"c", b"x"))
    plan = pvh.plan(handover(pvh_entry_gpa=1)._replace(modules=modules), 1)
    (strings_gpa,) = (blob.gpa for blob in plan.blobs if blob.name == "module strings")
    entries = list(struct.iter_unpack("<QQQQ", blob(plan, "module list")))
    assert [entry[2] for entry in entries] == [strings_gpa, 0, strings_gpa + 10]
    assert blob(plan, "module strings") == b"first one\x00x\x00"


# A block at the end of RAM

BLOCKS = {
    "real-mode vectors": "bios-ram",
    "BIOS stub": "bios-ram",
    "GDT": "gdt-ram",
    "boot_params": "boot-params-ram",
    "setup_data": "setup-data-ram",
    "page tables": "page-tables-ram",
    "start_info": "pvh-start-info-ram",
    "module list": "pvh-modlist-ram",
    "PVH memory map": "pvh-memmap-ram",
    "module strings": "pvh-strings-ram",
    "Multiboot information": "multiboot-info-ram",
}


@pytest.mark.parametrize(("name", "rule"), BLOCKS.items())
def test_block_may_end_where_ram_ends_and_no_byte_later(name: str, rule: str) -> None:
    given = handover(linux64_entry_gpa=1, initrd=INITRD)
    given = given._replace(modules=(Module(INITRD, b"initrd", b"arguments"),))
    plans = [protocol.plan(given, 1) for protocol in (linux64, pvh, multiboot)]
    blobs = {blob.name: blob for plan in plans for blob in plan.blobs}
    assert set(blobs) == set(BLOCKS)
    block = blobs[name]
    with GuestMemory.create(1 * MiB) as memory:
        last = block._replace(gpa=1 * MiB - len(block.data))
        last.write_to(memory)
        assert memory.read(last.gpa, len(last.data)) == block.data
        with pytest.raises(GuestMemoryError, match=f"{name} belongs at") as caught:
            last._replace(gpa=last.gpa + 1).write_to(memory)
    assert caught.value.rule == rule


def test_blobs_do_not_overlap() -> None:
    for plan in (
        pvh.plan(handover(pvh_entry_gpa=0x100_0000, initrd=INITRD), 0x100_0000),
        linux64.plan(handover(linux64_entry_gpa=0x100_0000), 0x100_0000),
        linux32.plan(handover(linux32_entry_gpa=0x100_0000), 0x100_0000),
        multiboot.plan(handover(multiboot_entry_gpa=0x100_0000, initrd=INITRD), 0x100_0000),
    ):
        ends = 0
        for blob in sorted(plan.blobs, key=lambda blob: blob.gpa):
            assert blob.gpa >= ends, blob.name
            ends = blob.gpa + len(blob.data)
        assert ends <= 0x2_0000  # the command line


ALL: dict[str, Any] = {
    "linux64_entry_gpa": 1,
    "linux32_entry_gpa": 2,
    "pvh_entry_gpa": 3,
    "multiboot_entry_gpa": 4,
}


@pytest.mark.parametrize(
    ("requested", "absent", "expected"),
    [
        (Protocol.AUTO, [], (Protocol.PVH, 3)),
        (Protocol.AUTO, ["pvh_entry_gpa"], (Protocol.MULTIBOOT, 4)),
        (Protocol.AUTO, ["pvh_entry_gpa", "multiboot_entry_gpa"], (Protocol.LINUX64, 1)),
        (
            Protocol.AUTO,
            ["pvh_entry_gpa", "multiboot_entry_gpa", "linux64_entry_gpa"],
            (Protocol.LINUX32, 2),
        ),
        (Protocol.LINUX64, [], (Protocol.LINUX64, 1)),
        (Protocol.LINUX32, [], (Protocol.LINUX32, 2)),
        (Protocol.PVH, [], (Protocol.PVH, 3)),
        (Protocol.MULTIBOOT, [], (Protocol.MULTIBOOT, 4)),
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
        (Protocol.PVH, {"linux64_entry_gpa": 1, "move": (0, 0, 0)}, "it was moved .--kaslr"),
        (Protocol.LINUX32, {"linux64_entry_gpa": 1}, "--decompress guest"),
        (Protocol.LINUX64, {"linux32_entry_gpa": 1}, "not a 64-bit kernel"),
        (Protocol.MULTIBOOT, {"linux64_entry_gpa": 1}, "no Multiboot header in its first 8 KiB"),
        (
            Protocol.LINUX64,
            {"multiboot_entry_gpa": 1, "format": ImageFormat.MULTIBOOT},
            "by the addresses in its Multiboot header.*offers multiboot",
        ),
        (Protocol.AUTO, {}, "no entry at all"),
    ],
)
def test_choose_explains_what_is_not_there(
    requested: Protocol, kernel: dict[str, Any], message: str
) -> None:
    with pytest.raises(KernelImageError, match=message) as caught:
        boot.choose(requested, handover(**kernel).kernel)
    assert caught.value.rule == "protocol-entry"
