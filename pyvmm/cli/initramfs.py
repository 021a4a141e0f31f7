"""``pyvmm initramfs``: make an initramfs around busybox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyvmm.cli.messages import tell
from pyvmm.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "make a busybox initramfs to boot a kernel into"

_EPILOG = """\
Without --init the guest gives a shell on its console, and ends when the shell does. Without
--busybox Debian's busybox-static is fetched through apt, once. The small one says that user space
was reached and powers off; behind " -- " on the kernel's command line it takes reboot, exit N
(the status that pyvmm ends with) or panic.

examples:
  pyvmm initramfs -o initramfs && pyvmm run --kernel debian --initrd initramfs
  pyvmm initramfs -o initramfs --init test.sh --add ./selftests:/root/selftests
  pyvmm initramfs -o small --small && pyvmm run --kernel debian --initrd small
"""


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", required=True, help="where to write it")
    add("--init", metavar="SCRIPT", help="the script that the kernel runs as /init")
    add(
        "--add",
        metavar="SRC[:DST]",
        action="append",
        default=[],
        help="a file, or a directory with all that is in it; DST is its path in the guest "
        "(default: / and its own name)",
    )
    add("--busybox", metavar="PATH", help="a static busybox for x86-64")
    add("--small", action="store_true", help="no busybox: an init of 1 KiB that ends the run")
    add("--gzip", action="store_true", help="compress it: smaller, slower to unpack")


def run(args: Namespace) -> int:
    """Make it, and say what was made."""
    from pyvmm.cli.fetch import progress_on_stderr
    from pyvmm.fetch import fetch_busybox
    from pyvmm.initramfs import build_initramfs
    from pyvmm.loader.files import read_regular

    init_script = None
    if args.init is not None:
        init_script = read_regular(args.init, "a script to run as /init", ImageError)
    extra_files = [split_argument(argument) for argument in args.add]
    busybox_path = args.busybox
    if args.small and busybox_path is not None:
        raise ConfigError("--small and --busybox were both given; expected one of the two")
    if busybox_path is None and not args.small:
        busybox_path = fetch_busybox(progress=progress_on_stderr())
    size_bytes = build_initramfs(
        args.output,
        busybox_path=busybox_path,
        init_script=init_script,
        extra_files=extra_files,
        compress=args.gzip,
    )
    tell(f"{args.output}: {size_bytes} bytes")
    return 0


def split_argument(argument: str) -> tuple[str, str]:
    """``SRC:DST`` as its two parts; a colon in the name of a file that exists is no separator."""
    source, colon, destination = argument.rpartition(":")
    if not colon or os.path.exists(argument):
        source, destination = argument, ""
    if not source:
        raise ConfigError(f"--add {argument!r} names no file; expected SRC or SRC:DST")
    name = os.path.basename(os.path.normpath(source))
    if not destination or destination.endswith("/"):
        destination = f"{destination or '/'}{name}"
    return source, destination
