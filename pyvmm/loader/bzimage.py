"""bzImage: a real-mode part with the setup header, then the protected-mode kernel.

    0x0000  +-----------------------------------+
            | boot sector: PE header if EFI stub|
    0x01f1  |   setup_header, first part        |
    0x0200  |   jump; its target ends the header|  length = 0x202 + byte at 0x201
    0x0202  |   "HdrS", version, second part    |
            | real-mode setup code: not used    |
            +-----------------------------------+  (setup_sects + 1) * 512
            | protected-mode kernel             |  entered at 0 (32 bits), 0x200 (64 bits)
            |   decompressor                    |
            |   payload: a compressed vmlinux   |  payload_offset, payload_length
            |   kernel_info: "LToP", its sizes  |  kernel_info_offset (2.15)
            +-----------------------------------+  + syssize * 16
            | signature, if any: not used       |
            +-----------------------------------+

Specification: Documentation/arch/x86/boot.rst (Linux 6.12); names are those of struct
setup_header in arch/x86/include/uapi/asm/bootparam.h.

Left out: zImage (LOADED_HIGH clear), whose place below 640 KiB is where our tables are, and
protocols before 2.06 (Linux 2.6.22), which do not say how long a command line may be.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import KernelImageError
from pyvmm.units import align_up

HEADER_OFFSET = 0x1F1
JUMP_OFFSET = 0x200
MAGIC_OFFSET = 0x202
BOOT_FLAG = 0xAA55
JUMP_SHORT = 0xEB
SECTOR_BYTES = 512
PARAGRAPH_BYTES = 16
LINUX64_ENTRY_OFFSET = 0x200

MIN_VERSION = 0x0206
XLOADFLAGS_VERSION = 0x020C
LOADED_HIGH = 1 << 0  # loadflags
XLF_KERNEL_64 = 1 << 0  # xloadflags
XLF_EFI_HANDOVER_32 = 1 << 2
XLF_EFI_HANDOVER_64 = 1 << 3

HEADER_MAGIC = b"HdrS"
KERNEL_INFO_MAGIC = b"LToP"

_FORMAT = struct.Struct("<BHIHHHHHIHIHHBBHIIIIHBBIIIBBHIIQIIQQIII")
_KERNEL_INFO = struct.Struct("<4sIII")

# Where the header ends by its version: fields that came later are not there to be read.
_END_BY_VERSION = (
    (0x020F, 0x26C),  # kernel_info_offset
    (0x020B, 0x268),  # handover_offset
    (0x020A, 0x264),  # pref_address, init_size
    (0x0209, 0x258),  # setup_data
    (0x0208, 0x250),  # payload_offset, payload_length
    (0x0207, 0x248),  # hardware_subarch, hardware_subarch_data
    (0x0206, 0x23C),  # cmdline_size
)


class SetupHeader(NamedTuple):
    """``struct setup_header``. A field that the image's header does not have is 0."""

    setup_sects: int
    root_flags: int
    syssize: int
    ram_size: int
    vid_mode: int
    root_dev: int
    boot_flag: int
    jump: int
    header: int
    version: int
    realmode_swtch: int
    start_sys_seg: int
    kernel_version: int
    type_of_loader: int
    loadflags: int
    setup_move_size: int
    code32_start: int
    ramdisk_image: int
    ramdisk_size: int
    bootsect_kludge: int
    heap_end_ptr: int
    ext_loader_ver: int
    ext_loader_type: int
    cmd_line_ptr: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable_kernel: int
    min_alignment: int
    xloadflags: int
    cmdline_size: int
    hardware_subarch: int
    hardware_subarch_data: int
    payload_offset: int
    payload_length: int
    setup_data: int
    pref_address: int
    init_size: int
    handover_offset: int
    kernel_info_offset: int
    raw: bytes
    """The header as it is in the image, exactly as long as it says: what boot_params gets."""

    @property
    def protocol(self) -> str:
        """The version as people write it: ``2.15``."""
        return f"{self.version >> 8}.{self.version & 0xFF:02}"


class KernelInfo(NamedTuple):
    """``kernel_info``, the fixed part: what newer kernels say of themselves (boot.rst)."""

    header: bytes
    size: int
    size_total: int
    setup_type_max: int
    """The highest type of setup_data that the kernel knows, SETUP_INDIRECT among its bits."""


class BzImage(NamedTuple):
    """A bzImage whose header has been checked, and where its protected-mode kernel is."""

    header: SetupHeader
    kernel_offset: int
    kernel_bytes: int
    kernel_info: KernelInfo | None
    """None if the kernel has none: it came with protocol 2.15 (Linux 5.5)."""

    def payload(self, data: memoryview) -> memoryview:
        """The compressed kernel in ``data``, of which this is the header.

        Raises KernelImageError if the header does not say where it is, or says it wrongly.
        """
        offset, length = self.header.payload_offset, self.header.payload_length
        if offset == 0 or length == 0:
            raise KernelImageError(
                f"does not say where its compressed kernel is (payload_offset {offset:#x}, "
                f"payload_length {length:#x}; protocol {self.header.protocol}); expected both of "
                "protocol 2.08 and later; use --decompress guest",
                "bzimage-no-payload",
            )
        if offset + length > self.kernel_bytes:
            raise KernelImageError(
                f"says its payload is at {offset:#x}..{offset + length:#x} of a protected-mode "
                f"kernel of {self.kernel_bytes:#x} bytes; the image is damaged",
                "bzimage-payload-bounds",
            )
        start = self.kernel_offset + offset
        return data[start : start + length]

    def load_gpa(self) -> int:
        """Where the protected-mode kernel belongs if it is to decompress itself.

        A relocatable kernel may lie anywhere aligned; at pref_address it need not move. Any other
        lies where code32_start says.
        """
        header = self.header
        if not header.relocatable_kernel:
            return header.code32_start
        alignment = header.kernel_alignment
        if alignment == 0 or alignment & (alignment - 1):
            raise KernelImageError(
                f"has kernel_alignment {alignment:#x} in its setup header; expected a power of "
                "two; the image is damaged",
                "bzimage-kernel-alignment",
            )
        return align_up(header.pref_address or layout.HIMEM_GPA, alignment)

    def linux64_entry_gpa(self, load_gpa: int) -> int | None:
        """The 64-bit entry of a kernel at ``load_gpa``; None if it has none."""
        header = self.header
        if header.version < XLOADFLAGS_VERSION or not header.xloadflags & XLF_KERNEL_64:
            return None
        return load_gpa + LINUX64_ENTRY_OFFSET

    def runtime_start_gpa(self, load_gpa: int) -> int:
        """Where the kernel will run: init_size counts from there (boot.rst, init_size).

        A relocatable kernel runs where it is, as that is aligned; any other moves itself.
        """
        if self.header.relocatable_kernel:
            return load_gpa
        return self.header.pref_address or load_gpa


def parse(data: memoryview) -> BzImage:
    """Check ``data`` against the boot protocol, as far as that does not need guest memory.

    Raises KernelImageError if it breaks the protocol, or the file is shorter than it says.
    """
    header = read_header(data)
    _check_header(header)
    kernel_offset = ((header.setup_sects or 4) + 1) * SECTOR_BYTES
    if len(data) <= kernel_offset:
        raise KernelImageError(
            f"is cut off after {len(data)} bytes, in its setup code, which ends at "
            f"{kernel_offset} (setup_sects {header.setup_sects}); get a complete copy",
            "bzimage-setup-sects",
        )
    if header.syssize == 0:
        raise KernelImageError(
            "has syssize 0 in its setup header; expected the size of the protected-mode kernel; "
            "the image is damaged",
            "bzimage-syssize",
        )
    kernel_bytes = header.syssize * PARAGRAPH_BYTES
    available = len(data) - kernel_offset
    # syssize counts paragraphs, so the last of them may be incomplete in the file.
    if available <= kernel_bytes - PARAGRAPH_BYTES:
        raise KernelImageError(
            f"is cut off or damaged: its setup header tells of {kernel_offset} bytes of setup and "
            f"{kernel_bytes} of kernel; the file has {len(data)}; get a complete copy",
            "bzimage-truncated",
        )
    kernel = data[kernel_offset : kernel_offset + kernel_bytes]
    _check_entries(header, len(kernel))
    return BzImage(header, kernel_offset, len(kernel), _read_kernel_info(header, kernel))


def read_header(data: memoryview) -> SetupHeader:
    """The setup header of ``data`` as it stands there; its values are not judged.

    Raises KernelImageError if there is none, or none of a protocol that is understood here.
    """
    if data[MAGIC_OFFSET : MAGIC_OFFSET + len(HEADER_MAGIC)] != HEADER_MAGIC:
        found = bytes(data[MAGIC_OFFSET : MAGIC_OFFSET + len(HEADER_MAGIC)]).hex(" ") or "nothing"
        raise KernelImageError(
            f"has {found} at {MAGIC_OFFSET:#x}; expected HdrS ({HEADER_MAGIC.hex(' ')}), which "
            "begins the setup header of a bzImage; check the path",
            "bzimage-magic",
        )
    version = int.from_bytes(data[0x206:0x208], "little")
    if len(data) < 0x208 or version < MIN_VERSION:
        raise KernelImageError(
            f"is a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}; expected 2.06 "
            "(Linux 2.6.22) or later; use a newer kernel",
            "bzimage-version",
        )
    opcode, displacement = data[JUMP_OFFSET], data[JUMP_OFFSET + 1]
    # The displacement is signed: 0x80 and above would jump back.
    if opcode != JUMP_SHORT or displacement >= 0x80:
        raise KernelImageError(
            f"has the bytes {opcode:02x} {displacement:02x} at {JUMP_OFFSET:#x}; expected a short "
            f"jump forward (eb 00 to eb 7f) over the rest of the setup header; "
            "the image is damaged",
            "bzimage-jump",
        )
    end = MAGIC_OFFSET + displacement
    required_end = _END_BY_VERSION[-1][1]
    if end < required_end:
        raise KernelImageError(
            f"has a setup header that ends at {end:#x}, where the jump at {JUMP_OFFSET:#x} leads; "
            f"expected {required_end:#x} or beyond, which is behind cmdline_size; "
            "the image is damaged",
            "bzimage-header-length",
        )
    if len(data) < end:
        raise KernelImageError(
            f"is cut off after {len(data)} bytes, in its setup header, which ends at {end}; "
            "get a complete copy",
            "bzimage-header-truncated",
        )
    raw = bytes(data[HEADER_OFFSET:end])
    defined_end = next(end for since, end in _END_BY_VERSION if version >= since)
    fields = raw[: defined_end - HEADER_OFFSET].ljust(_FORMAT.size, b"\x00")
    return SetupHeader._make((*_FORMAT.unpack(fields), raw))


def _check_header(header: SetupHeader) -> None:
    """What the header's values must be, each for itself."""
    if header.boot_flag != BOOT_FLAG:
        raise KernelImageError(
            f"has boot_flag {header.boot_flag:#06x} at 0x1fe; expected {BOOT_FLAG:#x}; "
            "the image is damaged",
            "bzimage-boot-flag",
        )
    if not header.loadflags & LOADED_HIGH:
        raise KernelImageError(
            "is a zImage (LOADED_HIGH is clear in loadflags), to be loaded at 0x10000; expected a "
            "bzImage; build it with 'make bzImage'",
            "bzimage-loaded-high",
        )
    # The kernel would walk a list at an address where nothing was put.
    if header.setup_data:
        raise KernelImageError(
            f"has setup_data {header.setup_data:#x} in its setup header; expected 0, as the list "
            "that it leads to is the loader's to write; the image is damaged",
            "bzimage-setup-data",
        )


def _check_entries(header: SetupHeader, kernel_bytes: int) -> None:
    """The entries that xloadflags tells of must be in the protected-mode kernel."""
    flags = header.xloadflags if header.version >= XLOADFLAGS_VERSION else 0
    if flags & XLF_KERNEL_64 and kernel_bytes <= LINUX64_ENTRY_OFFSET:
        raise KernelImageError(
            f"says that it has a 64-bit entry at {LINUX64_ENTRY_OFFSET:#x} (XLF_KERNEL_64), but "
            f"its protected-mode kernel has {kernel_bytes:#x} bytes; the image is damaged",
            "bzimage-xloadflags",
        )
    handover = header.handover_offset
    if flags & XLF_EFI_HANDOVER_64:
        handover += LINUX64_ENTRY_OFFSET
    elif not flags & XLF_EFI_HANDOVER_32:
        return
    if header.handover_offset and handover >= kernel_bytes:
        raise KernelImageError(
            f"says that its EFI handover entry is at {handover:#x} (handover_offset, xloadflags), "
            f"but its protected-mode kernel has {kernel_bytes:#x} bytes; the image is damaged",
            "bzimage-handover-offset",
        )


def _read_kernel_info(header: SetupHeader, kernel: memoryview) -> KernelInfo | None:
    """The kernel_info in the protected-mode ``kernel``."""
    offset = header.kernel_info_offset
    if offset == 0:
        return None
    if offset + _KERNEL_INFO.size > len(kernel):
        raise KernelImageError(
            f"says that its kernel_info is at {offset:#x} of a protected-mode kernel of "
            f"{len(kernel):#x} bytes; the image is damaged",
            "bzimage-kernel-info-bounds",
        )
    info = KernelInfo._make(_KERNEL_INFO.unpack_from(kernel, offset))
    if info.header != KERNEL_INFO_MAGIC:
        raise KernelImageError(
            f"has the bytes {info.header.hex(' ')} where its kernel_info should begin, at "
            f"{offset:#x} of its protected-mode kernel; expected LToP "
            f"({KERNEL_INFO_MAGIC.hex(' ')}); the image is damaged",
            "bzimage-kernel-info-magic",
        )
    if not _KERNEL_INFO.size <= info.size <= info.size_total <= len(kernel) - offset:
        raise KernelImageError(
            f"has a kernel_info of {info.size} bytes, {info.size_total} with its variable part; "
            f"expected at least {_KERNEL_INFO.size}, no more than the whole of it, and that within "
            f"the {len(kernel) - offset} bytes to the kernel's end; the image is damaged",
            "bzimage-kernel-info-size",
        )
    return info
