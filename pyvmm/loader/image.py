"""What is this file? Told by its content, never by its name.

These formats can be booted:

    ELF        a vmlinux, or any other kernel linked as ELF64 for x86-64, or as ELF32 for i386
    bzImage    what distributions ship as vmlinuz: "HdrS" at 0x202 (Documentation/arch/x86/boot.rst)
    Multiboot  what is neither, but has that header with a sum of 0 (multiboot.py)

in these wrappings (unpack.py):

    compressed file, EFI zboot, UKI

and these are known, placed (arm64.py, riscv64.py) and explained, for machines other than ours:

    arm64 Image, riscv64 Image

Most of them are PE files as well if they have an EFI stub, so what they are besides is looked for
first. What else is commonly handed to a VMM by mistake is recognised, so that the message can say
what it is and what to do with it; nothing but the message depends on that.
"""

from __future__ import annotations

import mmap
import os
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING

from pyvmm.errors import KernelImageError
from pyvmm.loader import elf
from pyvmm.loader.files import open_regular
from pyvmm.units import GiB

if TYPE_CHECKING:
    from pyvmm.loader.unpack import Layer

MAX_VMLINUX_BYTES = 1 * GiB
"""More than any kernel. The size that a damaged image tells of may be 4 GiB."""

SETUP_HEADER_MAGIC = (0x202, b"HdrS")
# Documentation/arch/arm64/booting.rst, arch/riscv/boot-image-header.rst
ARM64_MAGIC = (0x38, b"ARM\x64")
RISCV64_MAGIC2 = (0x38, b"RSC\x05")
EXPECTED = "expected an x86-64 kernel: a bzImage or an ELF vmlinux"


class ImageFormat(Enum):
    """A format that is known: those that can be booted, wrappings, other machines' kernels."""

    ELF = "ELF"
    BZIMAGE = "bzImage"
    MULTIBOOT = "Multiboot"
    COMPRESSED = "compressed file"
    ZBOOT = "EFI zboot"
    UKI = "UKI"
    ARM64 = "arm64 Image"
    RISCV64 = "riscv64 Image"


_BOOTABLE = (ImageFormat.ELF, ImageFormat.BZIMAGE, ImageFormat.MULTIBOOT)


class KernelImage:
    """The bytes of a kernel image, and where they came from. A context manager.

    ``data`` is the whole image, read-only; of a file it is the mapped file, not a copy, and ``fd``
    is the file it came from, so that parts of it can be read straight into place. A file that
    shrinks while it is mapped kills the process that touches the lost part (SIGBUS); like every
    user of mmap, we ask that kernels are replaced by renaming, as package managers do it.

    An image that was taken out of another has in ``layers`` what it was wrapped in, from the
    outside in; ``initrd`` and ``cmdline`` came with it.
    """

    __slots__ = ("_map", "cmdline", "data", "fd", "initrd", "layers", "name")

    def __init__(
        self, name: str, data: memoryview, fd: int | None = None, mapped: mmap.mmap | None = None
    ) -> None:
        self.name = name
        self.data = data
        self.fd = fd
        self._map = mapped
        self.layers: tuple[Layer, ...] = ()
        self.initrd: memoryview | None = None
        self.cmdline: bytes | None = None

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


def unwrapped(image: KernelImage, limit_bytes: int = MAX_VMLINUX_BYTES) -> KernelImage:
    """``image`` without what it is wrapped in, most often ``image`` itself: see unpack.unwrap."""
    if _has(image.data, *SETUP_HEADER_MAGIC) or image.data[:4] == elf.ELFMAG:
        return image  # almost always: the import takes longer than all else here
    from pyvmm.loader import unpack

    return unpack.unwrap(image, min(limit_bytes, MAX_VMLINUX_BYTES))


def detect(image: KernelImage) -> ImageFormat:
    """The format of the kernel in ``image``.

    Raises KernelImageError, saying what it is instead, if it is not one that can be booted.
    """
    inner = unwrapped(image)
    try:
        return detect_bytes(inner.data)
    except KernelImageError as error:
        raise error.about(inner.name) from None


def detect_bytes(data: memoryview) -> ImageFormat:
    """Like ``detect``, for bytes without a name that are not wrapped in anything."""
    image_format = identify(data)
    if image_format is None or image_format not in _BOOTABLE:
        raise explain_unknown(data)
    if image_format is ImageFormat.ELF:
        elf.read_header(data)  # explains another machine's, an object file
    return image_format


def identify(data: memoryview) -> ImageFormat | None:
    """The format that ``data`` begins as, wrapped or not; None if it is none that is known."""
    if _has(data, *SETUP_HEADER_MAGIC):
        return ImageFormat.BZIMAGE
    if data[:4] == elf.ELFMAG:
        return ImageFormat.ELF
    if _has(data, *ARM64_MAGIC):
        return ImageFormat.ARM64
    if _has(data, *RISCV64_MAGIC2):
        return ImageFormat.RISCV64
    from pyvmm.loader import compressed_file, multiboot, uki, zboot

    if compressed_file.is_compressed(data):
        return ImageFormat.COMPRESSED
    if zboot.is_zboot(data):
        return ImageFormat.ZBOOT
    if uki.is_uki(data):
        return ImageFormat.UKI
    if multiboot.find_header(data) is not None:
        return ImageFormat.MULTIBOOT
    return None


_INITRAMFS = "give it with --initrd, and the kernel with --kernel"

# (offset, magic, what it is, what to do). file(1)'s magic database has the same facts.
_SIGNATURES = (
    (
        0,
        b"\x89LZO\x00\r\n\x1a\n",
        "an lzop-compressed file",
        "decompress it first (lzop -d), or if it is an initramfs give it with --initrd",
    ),
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
)

# Kernels for other machines. The last one: Documentation/arch/arm/booting.rst.
_OTHER_KERNELS = (
    (*ARM64_MAGIC, "an ARM64 kernel (Image)"),
    (*RISCV64_MAGIC2, "a RISC-V kernel (Image)"),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit ARM kernel (zImage)"),
)


def explain_unknown(data: memoryview) -> KernelImageError:
    """The error that says why ``data``, which is not wrapped in anything, cannot be booted."""
    if not len(data):
        return KernelImageError(f"is empty (0 bytes); {EXPECTED}", "image-empty")
    for offset, magic, what in _OTHER_KERNELS:
        if _has(data, offset, magic):
            return _of_another_machine(what)
    if _has(data, 0, b"MZ"):
        return _explain_pe(data)
    return KernelImageError(_explain(data), "image-format")


def _explain(data: memoryview) -> str:
    for offset, magic, what, remedy in _SIGNATURES:
        if _has(data, offset, magic):
            return f"is {what}; {EXPECTED}; {remedy}"
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


def _explain_pe(data: memoryview) -> KernelImageError:
    """What kind of EFI program ``data``, which begins with "MZ", is."""
    from pyvmm.loader import pe

    try:
        headers = pe.parse(data)
    except KernelImageError as error:
        return error
    if headers.machine_name != "x86-64":
        return _of_another_machine(f"an EFI program for {headers.machine_name}")
    return KernelImageError(
        f"is an EFI program without a Linux setup header; {EXPECTED}", "image-efi"
    )


def _of_another_machine(what: str) -> KernelImageError:
    return KernelImageError(
        f"is {what}; {EXPECTED}; use a kernel built for x86-64", "image-machine"
    )
