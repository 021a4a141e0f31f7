"""``pyvmm explain``: what a kernel image is, and what ``pyvmm run`` would do with it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pyvmm.cli.boot_options import add_boot_options, boot_config
from pyvmm.errors import KernelImageError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pyvmm.explain.model import Report
    from pyvmm.loader.image import KernelImage

HELP = "tell what an image is, what would be loaded where, and how it would be entered"

_EPILOG = """\
exit status: 0 pyvmm can boot it so; 2 it cannot: the report says why; 1 this machine cannot

No /dev/kvm is needed, and nothing is run: the image is loaded into memory, and looked at there.

examples:
  pyvmm explain bzImage | less
  pyvmm explain debian:6.12 --mem 1G --initrd initramfs.cpio --html -o debian.html
  pyvmm explain vmlinux --json | jq .sections.elf_header.fields.e_entry.value
"""


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("kernel", metavar="FILE|NAME", help="an image, or a name from `pyvmm fetch --list`")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs: see docs/explain.md")
    form.add_argument("--html", action="store_true", help="a page for browsers, in one file")
    form.add_argument(
        "--config", action="store_true", help="the configuration that a kernel has in it, alone"
    )
    add("-o", "--output", metavar="FILE", help="where to write it (default: standard output)")
    add_boot_options(parser)


def run(args: Namespace) -> int:
    """Explain; 0 if it can be booted, 2 if not."""
    from pyvmm.cli.fetch import progress_on_stderr
    from pyvmm.explain.report import explain
    from pyvmm.fetch import resolve_kernel
    from pyvmm.loader.image import KernelImage

    config = boot_config(args)
    config.check()
    path = resolve_kernel(args.kernel, progress=progress_on_stderr())
    with KernelImage.open(path) as image:
        if args.config:
            _write(_configuration(image), args.output)
            return 0
        report = explain(image, config._replace(kernel=path))
    _write(_render(report, args), args.output)
    return 0 if report.problem is None else 2


def _configuration(image: KernelImage) -> str:
    from pyvmm.explain import linux
    from pyvmm.loader.load import extract_vmlinux

    found = linux.configuration(extract_vmlinux(image))
    if found is None:
        raise KernelImageError(
            f"{image.name}: has no configuration in it; expected a kernel built with "
            "CONFIG_IKCONFIG; distributions put theirs beside it, in /boot/config-*"
        )
    return found[1]


def _render(report: Report, args: Namespace) -> str:
    if args.json:
        from pyvmm.explain import as_json

        return as_json.render(report)
    if args.html:
        from pyvmm.explain import as_html

        return as_html.render(report)
    from pyvmm.explain import text

    styles = text.COLOUR if args.output is None and _wants_colour() else text.PLAIN
    return text.render(report, width=_terminal_width(), styles=styles)


def _wants_colour() -> bool:
    """As no-color.org has it, and never in a pipe or file."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _terminal_width() -> int:
    """That of the terminal; if our output goes to a pager, the others still are the terminal."""
    for fd in (1, 2, 0):
        try:
            return os.get_terminal_size(fd).columns
        except OSError:
            pass
    return 80


_ASCII = str.maketrans("┌┐└┘├┤─│", "++++++-|")


def _write(text: str, path: str | None) -> None:
    if path is not None:
        from pyvmm.loader.files import write_whole

        write_whole(path, text.encode("utf-8", "backslashreplace"))
        return
    if sys.stdout is None:  # closed: nobody wants to know
        return
    encoding = sys.stdout.encoding
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        ascii_text = text.translate(_ASCII)
        text = ascii_text.encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(text)
