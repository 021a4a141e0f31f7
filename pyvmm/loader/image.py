"""What is this file? Told by its content, never by its name.

These formats can be booted:

    ELF        a vmlinux, or any other kernel linked as ELF64 for x86-64, or as ELF32 for i386
    bzImage    what distributions ship as vmlinuz: "HdrS" at 0x202 (Documentation/arch/x86/boot.rst)
    Multiboot  what is neither, but has that header with a sum of 0 (multiboot.py)

A bzImage with an EFI stub is a PE file as well, so "HdrS" is looked for first. What else is
commonly handed to a VMM by mistake is recognised, so that the message can say what it is and what
to do with it; nothing but the message depends on that.
"""

from __future__ import annotations

import mmap
import os
from enum import Enum
from types import TracebackType

from pyvmm.errors import KernelImageError
from pyvmm.loader import elf
from pyvmm.loader.files import open_regular

SETUP_HEADER_MAGIC = (0x202, b"HdrS")
EXPECTED = "expected an x86-64 kernel: a bzImage or an ELF vmlinux"


class ImageFormat(Enum):
    """A format that can be booted."""

    ELF = "ELF"
    BZIMAGE = "bzImage"
    MULTIBOOT = "Multiboot"


class KernelImage:
    """The bytes of a kernel image, and where they came from. A context manager.

    ``data`` is the whole image, read-only; of a file it is the mapped file, not a copy, and ``fd``
    is the file it came from, so that parts of it can be read straight into place. A file that
    shrinks while it is mapped kills the process that touches the lost part (SIGBUS); like every
    user of mmap, we ask that kernels are replaced by renaming, as package managers do it.
    """

    __slots__ = ("_map", "data", "fd", "name")

    def __init__(
        self, name: str, data: memoryview, fd: int | None = None, mapped: mmap.mmap | None = None
    ) -> None:
        self.name = name
        self.data = data
        self.fd = fd
        self._map = mapped

    @classmethod
    def open(cls, path: str) -> KernelImage:
        """The image in the file ``path``.

        Raises KernelImageError if it is not a regular, readable file with something in it.
        """
        fd, size_bytes = open_regular(path, "a kernel image", KernelImageError)
        try:
            if size_bytes == 0:
                raise KernelImageError(f"{path}: is empty (0 bytes); {EXPECTED}")
            mapped = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
        except (OSError, OverflowError, ValueError) as error:
            os.close(fd)
            raise KernelImageError(
                f"{path}: cannot be mapped ({error}); its size is {size_bytes} bytes; {EXPECTED}"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return cls(path, memoryview(mapped), fd, mapped)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> KernelImage:
        """An image that is in memory already."""
        return cls(name, memoryview(data))

    def __enter__(self) -> KernelImage:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. ``data`` must not be used any more."""
        self.data.release()
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                pass  # a view is still out; the map goes when the view does
            self._map = None
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def detect(image: KernelImage) -> ImageFormat:
    """The format of ``image``.

    Raises KernelImageError, saying what it is instead, if it is not one that can be booted.
    """
    try:
        return detect_bytes(image.data)
    except KernelImageError as error:
        raise error.about(image.name) from None


def detect_bytes(data: memoryview) -> ImageFormat:
    """Like ``detect``, for bytes without a name."""
    if _has(data, *SETUP_HEADER_MAGIC):
        return ImageFormat.BZIMAGE
    if data[:4] == elf.ELFMAG:
        elf.read_header(data)  # explains another machine's, an object file
        return ImageFormat.ELF
    from pyvmm.loader import multiboot

    if multiboot.find_header(data) is not None:
        return ImageFormat.MULTIBOOT
    raise KernelImageError(_explain(data))


_COMPRESSED = "decompress it first ({}), or if it is an initramfs give it with --initrd"
_INITRAMFS = "give it with --initrd, and the kernel with --kernel"
_OTHER_MACHINE = "use a kernel built for x86-64"

# (offset, magic, what it is, what to do). file(1)'s magic database has the same facts.
_SIGNATURES = (
    (0, b"\x1f\x8b", "a gzip-compressed file", _COMPRESSED.format("gzip -d")),
    (0, b"BZh", "a bzip2-compressed file", _COMPRESSED.format("bzip2 -d")),
    (0, b"\xfd7zXZ\x00", "an xz-compressed file", _COMPRESSED.format("xz -d")),
    (0, b"\x5d\x00\x00", "an lzma-compressed file", _COMPRESSED.format("xz -d --format=lzma")),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file", _COMPRESSED.format("zstd -d")),
    (0, b"\x04\x22\x4d\x18", "an lz4-compressed file", _COMPRESSED.format("lz4 -d")),
    (0, b"\x02\x21\x4c\x18", "an lz4-compressed file", _COMPRESSED.format("lz4 -d")),
    (0, b"\x89LZO\x00\r\n\x1a\n", "an lzop-compressed file", _COMPRESSED.format("lzop -d")),
    (0, b"070701", "a cpio archive, an initramfs", _INITRAMFS),
    (0, b"070702", "a cpio archive, an initramfs", _INITRAMFS),
    (0, b"070707", "an old-style cpio archive", "the kernel wants the newc format as --initrd"),
    (
        0,
        b"!<arch>\ndebian-binary",
        "a Debian package",
        "unpack it (dpkg -x FILE DIR) and take DIR/boot/vmlinuz-*",
    ),
    (0, b"!<arch>\n", "an ar archive, a static library", "link it into a kernel"),
    (
        0,
        b"\xed\xab\xee\xdb",
        "an RPM package",
        "unpack it (rpm2cpio FILE | cpio -id) and take the vmlinuz in it",
    ),
    (0, b"PK\x03\x04", "a zip archive", "unpack it and take the kernel in it"),
    (257, b"ustar", "a tar archive", "unpack it and take the kernel in it"),
    (0, b"QFI\xfb", "a qcow2 disk image", "extract the kernel from its file system"),
    (0x8001, b"CD001", "an ISO 9660 image", "mount it and take the kernel in it"),
    (0x438, b"\x53\xef", "an ext2/3/4 file system", "extract the kernel from it"),
    (0, b"hsqs", "a squashfs file system", "extract the kernel from it"),
    (0, b"ANDROID!", "an Android boot image", "unpack the kernel in it"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image (uImage)", "use the bzImage it was made of"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image", "use a bzImage or vmlinux"),
    # Documentation/arch/arm64/booting.rst, arch/riscv/boot-image-header.rst, arm/booting.rst
    (0x38, b"ARM\x64", "an ARM64 kernel (Image)", _OTHER_MACHINE),
    (0x38, b"RSC\x05", "a RISC-V kernel (Image)", _OTHER_MACHINE),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit ARM kernel (zImage)", _OTHER_MACHINE),
)

# PE Format, "Machine Types".
_PE_MACHINES = {
    0x014C: "i386",
    0x01C4: "ARM",
    0x5064: "RISC-V 64",
    0x6264: "LoongArch64",
    0x8664: "x86-64",
    0xAA64: "ARM64",
}


def _explain(data: memoryview) -> str:
    """Why ``data`` cannot be booted: one line."""
    if not len(data):
        return f"is empty (0 bytes); {EXPECTED}"
    for offset, magic, what, remedy in _SIGNATURES:
        if _has(data, offset, magic):
            return f"is {what}; {EXPECTED}; {remedy}"
    if _has(data, 0, b"MZ"):
        return _explain_pe(data)
    if _has(data, 0x1FE, b"\x55\xaa"):
        return (
            "is a boot sector without a setup header: a disk image, or a kernel older than boot "
            f"protocol 2.00; {EXPECTED}; give the kernel file itself"
        )
    start = bytes(data[:512])
    if not start.strip(b"\x00"):
        return f"begins with {len(start)} zero bytes; {EXPECTED}; is the copy complete?"
    if _is_text(start):
        first_line = start.decode(errors="replace").strip().split("\n")[0][:40]
        return f"is text (it begins {first_line!r}); {EXPECTED}; check the path"
    return f"is of no known format (it begins with the bytes {start[:8].hex(' ')}); {EXPECTED}"


def _has(data: memoryview, offset: int, magic: bytes) -> bool:
    return data[offset : offset + len(magic)] == magic


def _is_text(start: bytes) -> bool:
    """Whether ``start`` holds no control character but white space."""
    return all((byte >= 0x20 and byte != 0x7F) or byte in b"\t\n\r\f" for byte in start)


def _explain_pe(data: memoryview) -> str:
    """What kind of EFI program ``data``, which begins with "MZ", is. Offsets: PE Format."""
    pe = int.from_bytes(data[0x3C:0x40], "little")
    if not _has(data, pe, b"PE\x00\x00"):
        return f"is a DOS program (MZ without a PE header); {EXPECTED}"
    number = int.from_bytes(data[pe + 4 : pe + 6], "little")
    machine = _PE_MACHINES.get(number, f"machine {number:#06x}")
    if machine != "x86-64":
        return f"is an EFI program for {machine}; {EXPECTED}; {_OTHER_MACHINE}"
    section_count = int.from_bytes(data[pe + 6 : pe + 8], "little")
    sections = pe + 24 + int.from_bytes(data[pe + 20 : pe + 22], "little")
    for index in range(section_count):
        if _has(data, sections + 40 * index, b".linux\x00\x00"):
            return (
                f"is a unified kernel image (EFI); {EXPECTED}; take the bzImage out of it: "
                "objcopy -O binary --only-section=.linux FILE bzImage"
            )
    return f"is an EFI program without a Linux setup header; {EXPECTED}"
