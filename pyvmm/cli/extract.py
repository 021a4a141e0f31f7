"""``pyvmm extract``: the kernel out of what it is wrapped in, most often a bzImage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.cli.messages import tell

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "write the kernel in a bzImage, a UKI or a compressed file to a file, as it runs"


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "kernel", metavar="KERNEL", help="a kernel's file, or a name such as debian:6.12"
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to write it")


def run(args: Namespace) -> int:
    """Extract, and say what was written."""
    from pyvmm.cli.fetch import progress_on_stderr
    from pyvmm.fetch import resolve_kernel
    from pyvmm.loader.files import write_whole
    from pyvmm.loader.image import KernelImage
    from pyvmm.loader.load import extract_vmlinux

    with KernelImage.open(resolve_kernel(args.kernel, progress=progress_on_stderr())) as image:
        vmlinux = extract_vmlinux(image)
        size_bytes = len(vmlinux)
        write_whole(args.output, vmlinux)
    tell(f"{args.output}: {size_bytes} bytes")
    return 0
