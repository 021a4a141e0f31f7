"""What an uncompressed Linux kernel says of itself: its version string, its configuration.

    "Linux version 6.1.0-56-cloud-amd64 (...) (gcc ...) #1 SMP ... \\n"    linux_banner
    "IKCFG_ST", a gzip stream, "IKCFG_ED"                                 CONFIG_IKCONFIG

Both are found by their text, anywhere in the image: neither needs symbols.

Specification: init/version-timestamp.c, kernel/configs.c (Linux 6.12).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from pyvmm.explain.fields import human_size
from pyvmm.explain.model import Field, Section, printable
from pyvmm.loader.linux_version import BANNER
from pyvmm.units import MiB

_CONFIG_START = re.compile(rb"IKCFG_ST(?=\x1f\x8b)")
_CONFIG_MAX_BYTES = 4 * MiB
_CONFIG_MAX_COMPRESSED_BYTES = 1 * MiB

# Of some thousand options, those that decide whether and how it boots here, by what they are for.
_OPTIONS = (
    ("CONFIG_LOCALVERSION", "what the builder added to the version"),
    ("CONFIG_SMP", "several processors"),
    ("CONFIG_PVH", "can be entered by PVH"),
    ("CONFIG_RELOCATABLE", "may be loaded elsewhere"),
    ("CONFIG_RANDOMIZE_BASE", "loads itself at a random address (KASLR)"),
    ("CONFIG_PHYSICAL_START", "where it is linked to lie"),
    ("CONFIG_SERIAL_8250_CONSOLE", "console=ttyS0 works"),
    ("CONFIG_BLK_DEV_INITRD", "takes an initrd"),
    ("CONFIG_DEVTMPFS_MOUNT", "mounts /dev by itself"),
    ("CONFIG_ACPI", "learns of its machine from ACPI's tables"),
    ("CONFIG_X86_MPPARSE", "can read the MP table"),
    ("CONFIG_PVPANIC", "tells the host of a panic"),
    ("CONFIG_VIRTIO_MMIO", "has virtio devices without PCI"),
    ("CONFIG_MODULES", "loads modules"),
)


def version_string(data: memoryview) -> str:
    """The kernel's banner without its line end; empty if it has none."""
    match = BANNER.search(data)
    return printable(match[0].decode("ascii").rstrip("\n")) if match else ""


def configuration(data: memoryview) -> tuple[int, str] | None:
    """Where the embedded configuration begins, and its text; None if there is none to be read."""
    match = _CONFIG_START.search(data)
    if match is None:
        return None
    stream = data[match.end() : match.end() + _CONFIG_MAX_COMPRESSED_BYTES]
    try:
        text = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(stream, _CONFIG_MAX_BYTES)
    except zlib.error:
        return None
    return match.end(), text.decode("ascii", "backslashreplace")


def describe(data: memoryview) -> Iterator[Section]:
    """The sections about a kernel that is not, or no longer, compressed."""
    banner = version_string(data)
    if banner:
        yield Section(
            "linux_version",
            "Version",
            "init/version-timestamp.c",
            "The line with which the kernel begins its log.",
            (Field("linux_banner", banner, banner, "release, builder, compiler, build"),),
        )
    found = configuration(data)
    if found is not None:
        yield _describe_configuration(*found)


def _describe_configuration(offset: int, text: str) -> Section:
    options = dict(
        line.split("=", 1)
        for line in text.splitlines()
        if line.startswith("CONFIG_") and "=" in line
    )
    fields = [
        Field("options", len(options), str(len(options)), "how many are set"),
        Field("stream", offset, hex(offset), "where the gzip stream begins in the vmlinux"),
    ]
    for name, meaning in _OPTIONS:
        value = printable(options.get(name, "n"))
        fields.append(Field(name, value, value, meaning))
    return Section(
        "ikconfig",
        "Embedded configuration",
        "kernel/configs.c (CONFIG_IKCONFIG)",
        f"The kernel has its configuration in it, {human_size(len(text))}; the options that matter "
        "to a virtual machine are shown, all of it with --config.",
        tuple(fields),
    )
