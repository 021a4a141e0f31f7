"""Which Linux a kernel is.

    bzImage    setup_header.kernel_version + 0x200 --> "6.1.0-56-cloud-amd64 (...) #1 SMP ...\\0"
    any other  "Linux version 6.1.0-56-cloud-amd64 (...) (gcc ...) #1 SMP ...\\n"   linux_banner

The banner is found by its text, anywhere in the image: that needs no symbols.

Specification: Documentation/arch/x86/boot.rst, kernel_version; init/version-timestamp.c (6.12).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyvmm.loader.bzimage import SECTOR_BYTES

if TYPE_CHECKING:
    from pyvmm.loader.load import LoadedKernel
    from pyvmm.memory import GuestMemory

# The build number tells it from the template of /proc/version, and from the banner that a weak
# symbol had before the last step of the build.
BANNER = re.compile(rb"Linux version ([0-9][ -~]{1,1000} #[0-9][ -~]{0,500})\n")
_RELEASE = re.compile(rb"([0-9]{1,3})\.([0-9]{1,3})")
_POINTER_BASE = 0x200  # of kernel_version: the first sector is not counted

Version = tuple[int, int]
"""Version and patch level: (6, 12)."""


def version_text(image: memoryview, kernel_version: int) -> bytes:
    """What a bzImage's ``kernel_version`` points to; empty if it is 0."""
    if not kernel_version:
        return b""
    start = kernel_version + _POINTER_BASE
    return bytes(image[start : start + SECTOR_BYTES]).split(b"\0")[0]


def linux_version(image: memoryview, kernel: LoadedKernel, memory: GuestMemory) -> Version | None:
    """The version of ``kernel``, which was loaded from ``image``; None if it is no Linux."""
    header = kernel.setup_header
    found = _RELEASE.match(version_text(image, header.kernel_version)) if header else None
    if found is None:
        parts = (memory.view(at.base_gpa, at.size_bytes) for at in kernel.placements)
        banner = next(filter(None, map(BANNER.search, parts)), None)
        found = _RELEASE.match(banner[1]) if banner else None
    return (int(found[1]), int(found[2])) if found else None
