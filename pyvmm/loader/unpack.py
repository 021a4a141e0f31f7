"""What a kernel may be wrapped in, told by content and taken off, one layer after the other.

    compressed file    vmlinux.gz, Image.zst, xen.gz            compressed_file.py
    EFI zboot          a compressed Image in an EFI program     zboot.py
    UKI                kernel, initrd and command line in one   uki.py

A bzImage is none of these: its payload is taken out when it is loaded, if the host is to do that
(load.py).
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.loader import compressed_file, uki, zboot
from pyvmm.loader.decompress import decompress
from pyvmm.loader.image import ImageFormat, KernelImage, explain_unknown, identify

MAX_LAYERS = 4
"""A compressed UKI of an EFI zboot image has three. (A file can be its own compression.)"""


class Layer(NamedTuple):
    """Something that a kernel was wrapped in, and where in it the rest was."""

    name: str
    offset: int
    size_bytes: int


def unwrap(image: KernelImage, limit_bytes: int) -> KernelImage:
    """The kernel in ``image``; ``image`` itself if it is not wrapped in anything.

    The result is valid as long as ``image`` is open, and need not be closed. Its ``layers`` tell
    what it was wrapped in, ``initrd`` and ``cmdline`` are what came with it.

    Raises KernelImageError, with the image's name in front, if a layer is damaged, if there is no
    kernel in it, or more than ``limit_bytes``; HostError if there is no memory to unpack it in.
    """
    while True:
        try:
            inner = take_off(image, limit_bytes)
        except KernelImageError as error:
            raise error.about(image.name) from error
        if inner is None:
            return image
        if len(inner.layers) > MAX_LAYERS:
            raise KernelImageError(
                f"{image.name}: is the {MAX_LAYERS}th thing wrapped in another, and no kernel; "
                "expected one by now; unpack it yourself",
                "unpack-layers",
            )
        image = inner


def take_off(image: KernelImage, limit_bytes: int) -> KernelImage | None:
    """What is in the outermost layer of ``image``; None if that is no layer.

    Raises KernelImageError as ``unwrap`` does, without the name.
    """
    match identify(image.data):
        case ImageFormat.COMPRESSED:
            return _decompress_file(image, limit_bytes)
        case ImageFormat.ZBOOT:
            return _take_out_of_zboot(image, limit_bytes)
        case ImageFormat.UKI:
            return _take_out_of_uki(image)
        case _:
            return None


def _decompress_file(image: KernelImage, limit_bytes: int) -> KernelImage:
    def check_start(start: memoryview) -> None:
        if identify(start) is None:
            raise explain_unknown(start).about("what is compressed in it")

    name, data = compressed_file.decompress_file(image.data, limit_bytes, check_start)
    return _inner(image, "what is compressed in it", data, Layer(name, 0, len(image.data)))


def _take_out_of_zboot(image: KernelImage, limit_bytes: int) -> KernelImage:
    header = zboot.parse(image.data)
    payload = image.data[header.payload_offset :][: header.payload_bytes]
    layer = Layer(f"EFI zboot, {header.compression}", header.payload_offset, len(payload))
    return _inner(image, "EFI zboot payload", decompress(payload, limit_bytes), layer)


def _take_out_of_uki(image: KernelImage) -> KernelImage:
    parts = uki.parse(image.data)
    layer = Layer("UKI", parts.linux_offset, len(parts.linux))
    inner = _inner(image, f"section {uki.LINUX}", parts.linux, layer)
    inner.initrd = parts.initrd
    inner.cmdline = None if parts.cmdline is None else uki.tidy_cmdline(parts.cmdline)
    return inner


def _inner(outer: KernelImage, label: str, data: memoryview, layer: Layer) -> KernelImage:
    inner = KernelImage(f"{outer.name}: {label}", data)
    inner.layers = (*outer.layers, layer)
    inner.initrd, inner.cmdline = outer.initrd, outer.cmdline
    return inner
