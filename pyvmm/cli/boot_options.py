"""The options that say what is booted and how: those of ``pyvmm run`` and ``pyvmm explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.boot import Protocol
from pyvmm.config import DEFAULT_CMDLINE, DEFAULT_MEMORY_BYTES, MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.loader.load import Decompress
from pyvmm.units import format_size, parse_size

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pyvmm.loader.kaslr import Kaslr


def add_boot_options(parser: ArgumentParser) -> None:
    """Add them all."""
    add = parser.add_argument
    add(
        "--cmdline",
        metavar="TEXT",
        help="the kernel's command line (default: that of a unified kernel image, or "
        f"{DEFAULT_CMDLINE})",
    )
    add("--initrd", metavar="FILE", help="initramfs or initrd, such as `pyvmm initramfs` makes")
    add(
        "--module",
        metavar='"FILE [TEXT]"',
        action="append",
        default=[],
        help="another file for a PVH or Multiboot kernel, and its command line; "
        "may be given more than once",
    )
    add(
        "--mem",
        metavar="SIZE",
        default=format_size(DEFAULT_MEMORY_BYTES).replace(" MiB", "M"),
        help="guest memory: 512M, 5G (default: %(default)s)",
    )
    add(
        "--protocol",
        choices=("auto", "pvh", "multiboot", "linux64", "linux32"),
        default="auto",
        help="how the kernel is entered (default: the first of these that it has)",
    )
    add(
        "--decompress",
        choices=("host", "guest"),
        help="who decompresses a bzImage (default: the host, except for linux32)",
    )
    add(
        "--kaslr",
        nargs="?",
        const="",
        metavar="PHYSICAL:VIRTUAL",
        help="move the kernel to random addresses, or to these",
    )


def boot_config(args: Namespace) -> MachineConfig:
    """The part of a configuration that they give, without the kernel: it may have to be fetched.

    Raises ConfigError for a value that is none.
    """
    return MachineConfig(
        kernel="",
        cmdline=args.cmdline,
        initrd=args.initrd,
        modules=tuple(_module(text) for text in args.module),
        memory_bytes=parse_size(args.mem),
        protocol=Protocol(args.protocol),
        decompress=Decompress(args.decompress) if args.decompress else None,
        kaslr=None if args.kaslr is None else _kaslr(args.kaslr),
    )


def _module(text: str) -> tuple[str, str]:
    """``FILE TEXT`` as its two parts."""
    path, _, cmdline = text.strip().partition(" ")
    if not path:
        raise ConfigError(f"--module {text!r} names no file; expected a path, then perhaps text")
    return path, cmdline.strip()


def _kaslr(text: str) -> Kaslr:
    """What --kaslr asks for: nothing, or PHYSICAL:VIRTUAL, of which either may be left out."""
    from pyvmm.loader.kaslr import Kaslr  # only here: few boots need it

    physical, _, virtual = text.partition(":")
    try:
        return Kaslr(int(physical, 0) if physical else None, int(virtual, 0) if virtual else None)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no pair of addresses; expected --kaslr without a value, or with one such "
            "as 0x20000000:0xffffffffa0000000"
        ) from None
