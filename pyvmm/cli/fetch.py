"""``pyvmm fetch``: get kernels by name, once, through apt."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pyvmm.apt import Progress

HELP = "fetch kernels by name, through apt, into the cache"

_EPILOG = """\
A fetched kernel stays in $XDG_CACHE_HOME/pyvmm (~/.cache/pyvmm) and is not fetched again. Root is
not needed, once apt has its package lists (`apt-get update`).

examples:
  pyvmm fetch --list               the names there are, and which of them are fetched
  pyvmm fetch debian               fetch Debian's cloud kernel, print where it is
  pyvmm fetch --update debian      fetch it again if the distribution has a newer one
  pyvmm run --kernel debian:6.12   fetch and boot
"""


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a kernel's name, such as debian or debian:6.12")
    add("--list", action="store_true", help="list the names and what they stand for")
    add("--update", action="store_true", help="ask apt whether there is a newer one")
    add("--verify", action="store_true", help="check the fetched kernels against their checksums")
    add("--path-only", action="store_true", help="print the path alone, for use in scripts")


def run(args: Namespace) -> int:
    """Fetch, or list, or verify."""
    from pyvmm import fetch

    if args.list:
        if args.names or args.update or args.verify or args.path_only:
            raise ConfigError("--list goes with no names and no other option")
        _print_list()
        return 0
    if args.update and args.verify:
        raise ConfigError("--update and --verify were both given; expected one of the two")
    if not args.names:
        raise ConfigError("no kernel's name was given; `pyvmm fetch --list` tells them")
    progress = progress_on_stderr()
    for name in args.names:
        if args.verify:
            kernel = fetch.verify_kernel(name)
        else:
            kernel = fetch.fetch_kernel(name, update=args.update, progress=progress)
        if args.path_only:
            print(kernel.path)
        else:
            checked = ", checksum right" if args.verify else ""
            print(f"{name}: {kernel.package} {kernel.version}{checked}\n  {kernel.path}")
    return 0


def progress_on_stderr() -> Progress | None:
    """Something that shows a download's progress on a terminal; None if there is no terminal."""
    if not os.isatty(2):
        return None
    from pyvmm.units import MiB

    def show(what: str, done_bytes: int, size_bytes: int) -> None:
        text = f"\rfetching {what}: {done_bytes / MiB:.1f} of {size_bytes / MiB:.1f} MiB"
        end = "\n" if done_bytes == size_bytes else ""
        print(text, end=end, file=sys.stderr, flush=True)

    return show


def _print_list() -> None:
    from pyvmm import fetch

    for entry in fetch.list_kernels():
        cached = fetch.cached_kernel(entry.name)
        print(" = ".join((entry.name, *entry.aliases)))
        print(f"  {entry.description}")
        done = "built" if entry.built else "fetched"
        print(f"  {f'{done}: {cached.version}' if cached else f'not {done} yet'}")
