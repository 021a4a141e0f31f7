"""What is in a file: the layers that a kernel is wrapped in, the kernel, what is packed in that.

    compressed file > UKI > bzImage > vmlinux

Each layer is described, from the outside in, as far as they can be taken off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.explain import bzimage, elf, fdt, flat, linux, multiboot, pe, relocations, wrapping
from pyvmm.explain.fields import human_size
from pyvmm.explain.model import Field, Section, printable
from pyvmm.loader.decompress import identify as identify_compression
from pyvmm.loader.elf import ELFMAG
from pyvmm.loader.image import MAX_VMLINUX_BYTES, ImageFormat, KernelImage, identify
from pyvmm.loader.load import extract_vmlinux
from pyvmm.loader.unpack import MAX_LAYERS, take_off


class Contents(NamedTuple):
    """What a file turned out to hold."""

    layers: tuple[tuple[KernelImage, ImageFormat | None], ...]
    """From the outside in; the last is the kernel, or what could not be looked into."""
    vmlinux: memoryview | None
    """The kernel without any packing; None if there is none to be had."""
    problem: str
    """Why no more can be taken out; empty if nothing is left in."""

    @property
    def kernel(self) -> KernelImage:
        """The innermost."""
        return self.layers[-1][0]

    @property
    def kernel_format(self) -> ImageFormat | None:
        """The format of the innermost; None if it is none that is known."""
        return self.layers[-1][1]


def look_into(image: KernelImage) -> Contents:
    """The contents of ``image``.

    Raises HostError if this host has not the memory for them.
    """
    layers = [(image, identify(image.data))]
    try:
        while (inner := take_off(layers[-1][0], MAX_VMLINUX_BYTES)) and len(layers) <= MAX_LAYERS:
            layers.append((inner, identify(inner.data)))
        vmlinux = None if layers[-1][1] is None else extract_vmlinux(layers[-1][0])
    except KernelImageError as error:
        return Contents(tuple(layers), None, without_name(error, layers[-1][0].name))
    return Contents(tuple(layers), vmlinux, "")


def without_name(error: Exception, name: str) -> str:
    """What ``error`` says, without the name of the file that it is about."""
    return printable(str(error).removeprefix(f"{name}: "))


def describe(contents: Contents) -> Iterator[Section]:
    """The sections about all of it."""
    for image, image_format in contents.layers[:-1]:
        yield from _describe_wrapping(image, image_format)
    yield from _describe_kernel(contents)


def _describe_wrapping(image: KernelImage, image_format: ImageFormat | None) -> Iterator[Section]:
    match image_format:
        case ImageFormat.COMPRESSED:
            yield from wrapping.describe_compressed_file(image.data)
        case ImageFormat.ZBOOT:
            yield from wrapping.describe_zboot(image.data)
            yield from pe.describe(image.data, key="zboot_pe", what="EFI zboot: PE")
        case ImageFormat.UKI:
            yield from wrapping.describe_uki(image.data)
            yield from pe.describe(image.data, key="uki_pe", what="UKI: PE")


def _describe_kernel(contents: Contents) -> Iterator[Section]:
    data = contents.kernel.data
    vmlinux = contents.vmlinux
    match contents.kernel_format:
        case ImageFormat.ELF:
            yield from elf.describe(data)
            yield from multiboot.describe(data)
        case ImageFormat.MULTIBOOT:
            yield from multiboot.describe(data)
        case ImageFormat.BZIMAGE:
            yield from bzimage.describe(data)
            yield from pe.describe(data)
            yield _describe_payload(contents)
            if vmlinux is not None:
                yield from elf.describe(vmlinux, key="payload_elf", what="The vmlinux in it")
        case ImageFormat.ARM64:
            yield from flat.describe_arm64(data)
            yield from pe.describe(data)
        case ImageFormat.RISCV64:
            yield from flat.describe_riscv64(data)
            yield from pe.describe(data)
        case None:
            yield from pe.describe(data)
            yield from fdt.describe(data)
        case _:
            yield from _describe_wrapping(contents.kernel, contents.kernel_format)
    if vmlinux is not None:
        yield from relocations.describe(vmlinux)
        yield from linux.describe(vmlinux)


def _describe_payload(contents: Contents) -> Section:
    payload = bzimage.payload(contents.kernel.data)
    name = _compression(payload)
    fields = [
        Field("compression", name, name, "by its magic number"),
        Field("size", len(payload), human_size(len(payload)), "compressed"),
    ]
    if contents.vmlinux is not None:
        size_bytes = len(contents.vmlinux)
        ratio = f"{human_size(size_bytes)}: {size_bytes / max(1, len(payload)):.1f} times"
        fields.append(Field("vmlinux_size", size_bytes, ratio, "decompressed"))
    return Section(
        "payload",
        "Payload",
        "Documentation/arch/x86/boot.rst, payload_offset",
        contents.problem and f"It cannot be unpacked here: {contents.problem}",
        tuple(fields),
    )


def _compression(payload: memoryview) -> str:
    if payload[: len(ELFMAG)] == ELFMAG:
        return "none"
    try:
        return identify_compression(payload)[0]
    except KernelImageError:
        return "unknown"


def summarize(contents: Contents) -> list[Field]:
    """The format, from the outside in, and which kernel it is."""
    kernel = contents.kernel.data
    names = [
        f"{_name_of(image.data, image_format)}, {human_size(len(image.data))}"
        for image, image_format in contents.layers
    ]
    fields = [("format", "; in it: ".join(names))]
    version = ""
    if contents.kernel_format is ImageFormat.BZIMAGE:
        version = bzimage.parts(kernel).version_string
    elif contents.vmlinux is not None:
        version = linux.version_string(contents.vmlinux)
    if version:
        fields.append(("kernel", version))
    if contents.kernel_format is ImageFormat.BZIMAGE and contents.vmlinux is not None:
        compression = _compression(bzimage.payload(kernel))
        fields.append(("payload", f"{compression}, {human_size(len(contents.vmlinux))} unpacked"))
    return [Field(name, shown, shown, "") for name, shown in fields]


def _name_of(data: memoryview, image_format: ImageFormat | None) -> str:
    if image_format is None:
        return "none that pyvmm knows"
    if image_format is ImageFormat.BZIMAGE:
        return f"bzImage, boot protocol {bzimage.parts(data).protocol}"
    return str(image_format.value)
