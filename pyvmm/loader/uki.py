"""UKI, the unified kernel image: an EFI program whose sections hold all that a boot needs.

    .linux      the kernel: a bzImage, or another machine's Image
    .initrd     its initrd
    .cmdline    its command line, as text
    .osrel      /etc/os-release of the system that it is for
    .uname      what `uname -r` will say
    .profile    begins a profile: the sections behind it, up to the next .profile, replace those
                of the same name before the first one
    .text ...   the stub that firmware would start

Of several profiles the first is taken, as the stub does when it is not told which.

Left out: .dtb, .ucode, .splash and what is for a TPM; a virtual machine has none of these, or gets
them by other ways. Addons, which are files of their own.

Specification: UAPI Group Specifications, UAPI.5 (Unified Kernel Image); systemd-stub(7).
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.loader import pe

LINUX, INITRD, CMDLINE, OSREL, UNAME = ".linux", ".initrd", ".cmdline", ".osrel", ".uname"
PROFILE = ".profile"
SECTIONS = (LINUX, INITRD, CMDLINE, OSREL, UNAME)


class Uki(NamedTuple):
    """What is in a unified kernel image. Except for ``linux`` it may be None: not there."""

    headers: pe.PeHeaders
    linux: memoryview
    linux_offset: int
    """Where in the file ``linux`` is."""
    initrd: memoryview | None
    cmdline: bytes | None
    osrel: bytes | None
    uname: bytes | None


def is_uki(data: memoryview) -> bool:
    """Whether ``data`` is an EFI program with a section .linux, which is what makes it a UKI."""
    if data[: len(pe.MZ_MAGIC)] != pe.MZ_MAGIC:
        return False
    try:
        headers = pe.parse(data)
    except KernelImageError:
        return False
    return any(section.name == LINUX for section in headers.sections)


def parse(data: memoryview) -> Uki:
    """The parts of ``data``, for which ``is_uki`` holds.

    Raises KernelImageError if a section that is used is there twice, or not wholly in the file.
    """
    headers = pe.parse(data)
    chosen = _choose_sections(headers)

    def contents(name: str) -> memoryview | None:
        return pe.contents(data, chosen[name]) if name in chosen else None

    linux = contents(LINUX)
    if not linux:
        raise KernelImageError(
            "is a unified kernel image without a kernel: its section .linux is empty, or of "
            "another profile than the first; expected a kernel in it; build it again",
            "uki-linux",
        )
    return Uki(
        headers,
        linux,
        chosen[LINUX].pointer_to_raw_data,
        contents(INITRD) or None,
        _text(contents(CMDLINE)),
        _text(contents(OSREL)),
        _text(contents(UNAME)),
    )


def tidy_cmdline(text: bytes) -> bytes:
    """A command line as systemd-stub hands it on: files end in a newline, and may have several."""
    return bytes(byte if byte >= 0x20 else 0x20 for byte in text).strip(b" ")


def _choose_sections(headers: pe.PeHeaders) -> dict[str, pe.SectionHeader]:
    """The sections that count, by name: those before the first profile, and its own."""
    chosen: dict[str, pe.SectionHeader] = {}
    in_this_profile: set[str] = set()
    profiles = 0
    for section in headers.sections:
        if section.name == PROFILE:
            profiles += 1
            in_this_profile.clear()
        if profiles > 1:
            break
        if section.name not in SECTIONS:
            continue
        if section.name in in_this_profile:
            raise KernelImageError(
                f"is a unified kernel image with two sections {section.name}; expected at most "
                "one in each profile; build it again",
                "uki-section-twice",
            )
        in_this_profile.add(section.name)
        chosen[section.name] = section
    return chosen


def _text(section: memoryview | None) -> bytes | None:
    """Text ends at a NUL, if there is one: some tools pad with it, some do not."""
    return None if section is None else bytes(section).partition(b"\x00")[0]
