"""explain(): what an image is, and what pyvmm would do with it, as a Report.

The image is described as far as its bytes go, and then loaded for real, as ``pyvmm run`` would,
into guest memory that no guest will ever see. What that says to a damaged image is the report's
Problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError, GuestMemoryError, ImageError, KernelImageError, PyvmmError
from pyvmm.explain import boot, bzimage, elf, linux, multiboot, pe, relocations
from pyvmm.explain.fields import address, human_size
from pyvmm.explain.memory_map import draw
from pyvmm.explain.model import Field, Problem, Report, Section, printable
from pyvmm.loader import bzimage as bzimage_loader
from pyvmm.loader.decompress import identify
from pyvmm.loader.elf import ELFMAG
from pyvmm.loader.image import SETUP_HEADER_MAGIC, ImageFormat
from pyvmm.loader.load import Decompress, Placement, extract_vmlinux
from pyvmm.loader.multiboot import find_header
from pyvmm.loader.rules import RULES
from pyvmm.memory import GuestMemory
from pyvmm.prepare import Prepared, prepare

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.loader.image import KernelImage


def explain(image: KernelImage, config: MachineConfig) -> Report:
    """The report on ``image``, were it booted as ``config`` says, whose kernel it is.

    Raises HostError if this host has not the memory for it.
    """
    image_format = _format_of(image.data)
    vmlinux, unpacking_problem = _unpack(image, image_format)
    with GuestMemory.create(config.memory_bytes) as memory:
        prepared: Prepared | None = None
        problem: Problem | None = None
        try:
            prepared = prepare(config, image, memory)
        except (ImageError, ConfigError, GuestMemoryError) as error:
            problem = _problem(error, image.name)
        boot_sections: tuple[Section, ...] = ()
        if prepared is not None:
            placements = boot.placements(prepared)
            boot_sections = tuple(boot.describe(prepared, memory, config.protocol))
        else:
            placements = _wanted(image.data, image_format, vmlinux, config)
        memory_map = draw(memory, placements) if placements else None
    return Report(
        printable(image.name),
        len(image.data),
        image_format.value if image_format else None,
        problem,
        (
            _summarize(image, image_format, vmlinux, prepared),
            *_describe_image(image.data, image_format, vmlinux, unpacking_problem),
        ),
        memory_map,
        boot_sections,
    )


def _format_of(data: memoryview) -> ImageFormat | None:
    """What the magic numbers say, and nothing but those."""
    offset, magic = SETUP_HEADER_MAGIC
    if data[offset : offset + len(magic)] == magic:
        return ImageFormat.BZIMAGE
    if data[: len(ELFMAG)] == ELFMAG:
        return ImageFormat.ELF
    return ImageFormat.MULTIBOOT if find_header(data) is not None else None


def _unpack(image: KernelImage, image_format: ImageFormat | None) -> tuple[memoryview | None, str]:
    """The vmlinux in ``image``, or why there is none."""
    if image_format in (ImageFormat.ELF, ImageFormat.MULTIBOOT):
        return image.data, ""
    if image_format is None:
        return None, ""
    try:
        return extract_vmlinux(image), ""
    except KernelImageError as error:
        return None, _without_name(error, image.name)


def _problem(error: PyvmmError, name: str) -> Problem:
    rule = RULES.get(error.rule)
    message = _without_name(error, name)
    return Problem(message, error.rule, rule.text if rule else "", rule.source if rule else "")


def _without_name(error: PyvmmError, name: str) -> str:
    return printable(str(error).removeprefix(f"{name}: "))


def _wanted(
    data: memoryview,
    image_format: ImageFormat | None,
    vmlinux: memoryview | None,
    config: MachineConfig,
) -> list[Placement]:
    """Where a kernel that could not be loaded wants to be."""
    if image_format is ImageFormat.BZIMAGE and config.decompress_where is Decompress.GUEST:
        try:
            bz = bzimage_loader.parse(data)
            load_gpa = bz.load_gpa()
        except KernelImageError:
            return []
        start_gpa = bz.runtime_start_gpa(load_gpa)
        end_gpa = load_gpa + bz.kernel_bytes
        room_bytes = max(0, start_gpa + bz.header.init_size - end_gpa)
        return [
            Placement("protected-mode kernel", load_gpa, bz.kernel_bytes),
            Placement("room to decompress itself", end_gpa, room_bytes),
        ]
    if image_format is ImageFormat.MULTIBOOT:
        return multiboot.segments(data)
    return elf.segments(vmlinux) if vmlinux is not None else []


def _describe_image(
    data: memoryview,
    image_format: ImageFormat | None,
    vmlinux: memoryview | None,
    unpacking_problem: str,
) -> Iterator[Section]:
    if image_format is ImageFormat.ELF:
        yield from elf.describe(data)
        yield from multiboot.describe(data)
    elif image_format is ImageFormat.MULTIBOOT:
        yield from multiboot.describe(data)
    elif image_format is ImageFormat.BZIMAGE:
        yield from bzimage.describe(data)
        yield from pe.describe(data)
        yield _describe_payload(data, vmlinux, unpacking_problem)
        if vmlinux is not None:
            yield from elf.describe(vmlinux, key="payload_elf", what="The vmlinux in it")
    if vmlinux is not None and image_format is not ImageFormat.MULTIBOOT:
        yield from relocations.describe(vmlinux)
        yield from linux.describe(vmlinux)


def _describe_payload(data: memoryview, vmlinux: memoryview | None, problem: str) -> Section:
    layout = bzimage.parts(data)
    payload = data[layout.payload_offset :][: layout.payload_bytes]
    fields = [Field("compression", *(2 * (_compression(payload),)), "by its magic number")]
    if vmlinux is not None:
        ratio = f"{human_size(len(vmlinux))}: {len(vmlinux) / max(1, len(payload)):.1f} times"
        fields.append(Field("size", len(payload), human_size(len(payload)), "compressed"))
        fields.append(Field("vmlinux_size", len(vmlinux), ratio, "decompressed"))
    return Section(
        "payload",
        "Payload",
        "Documentation/arch/x86/boot.rst, payload_offset",
        problem and f"It cannot be unpacked here: {problem}",
        tuple(fields),
    )


def _compression(payload: memoryview) -> str:
    if payload[: len(ELFMAG)] == ELFMAG:
        return "none"
    try:
        return identify(payload)[0]
    except KernelImageError:
        return "unknown"


def _summarize(
    image: KernelImage,
    image_format: ImageFormat | None,
    vmlinux: memoryview | None,
    prepared: Prepared | None,
) -> Section:
    fields = []

    def add(name: str, shown: str) -> None:
        fields.append(Field(name, shown, shown, ""))

    size_bytes = len(image.data)
    if image_format is ImageFormat.BZIMAGE:
        layout = bzimage.parts(image.data)
        add("format", f"bzImage, boot protocol {layout.protocol}, {human_size(size_bytes)}")
        if layout.version_string:
            add("kernel", layout.version_string)
    elif image_format is not None:
        add("format", f"{image_format.value}, {human_size(size_bytes)}")
        banner = linux.version_string(image.data)
        if banner:
            add("kernel", banner)
    else:
        add("format", f"none that pyvmm knows, {human_size(size_bytes)}")
    if image_format is ImageFormat.BZIMAGE and vmlinux is not None:
        compression = _compression(image.data[layout.payload_offset :])
        add("payload", f"{compression}, {human_size(len(vmlinux))} unpacked")
    if prepared is not None:
        kernel = prepared.kernel
        add("loaded", f"{address(kernel.start_gpa)} to {address(kernel.end_gpa)}")
        add("entered", f"by {prepared.protocol.value} at {address(prepared.entry_gpa)}")
    return Section("summary", "In short", "", "", tuple(fields))
