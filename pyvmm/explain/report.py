"""explain(): what an image is, and what pyvmm would do with it, as a Report.

The image is described as far as its bytes go, and then loaded for real, as ``pyvmm run`` would,
into guest memory that no guest will ever see. What that says to a damaged image is the report's
Problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError, GuestMemoryError, ImageError, PyvmmError
from pyvmm.explain import boot, bzimage, elf, multiboot
from pyvmm.explain.fields import address
from pyvmm.explain.image import Contents, describe, look_into, summarize, without_name
from pyvmm.explain.memory_map import draw
from pyvmm.explain.model import Field, Problem, Report, Section, printable
from pyvmm.loader.image import ImageFormat
from pyvmm.loader.load import Decompress, Placement
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
    contents = look_into(image)
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
            placements = _wanted(contents, config)
        memory_map = draw(memory, placements) if placements else None
    summary = Section("summary", "In short", "", "", (*summarize(contents), *_outcome(prepared)))
    image_format = contents.layers[0][1]
    return Report(
        printable(image.name),
        len(image.data),
        image_format.value if image_format else None,
        problem,
        tuple(_with_unique_keys([summary, *describe(contents)])),
        memory_map,
        boot_sections,
    )


def _with_unique_keys(sections: list[Section]) -> Iterator[Section]:
    """``sections``; what was wrapped in its own kind is told from that by a number."""
    seen: Counter[str] = Counter()
    for section in sections:
        seen[section.key] += 1
        count = seen[section.key]
        yield section._replace(key=f"{section.key}_{count}") if count > 1 else section


def _outcome(prepared: Prepared | None) -> list[Field]:
    """Where the kernel went, and how it is entered."""
    if prepared is None:
        return []
    kernel = prepared.kernel
    loaded = f"{address(kernel.start_gpa)} to {address(kernel.end_gpa)}"
    entered = f"by {prepared.protocol.value} at {address(prepared.entry_gpa)}"
    return [Field("loaded", loaded, loaded, ""), Field("entered", entered, entered, "")]


def _problem(error: PyvmmError, name: str) -> Problem:
    rule = RULES.get(error.rule)
    message = without_name(error, name)
    return Problem(message, error.rule, rule.text if rule else "", rule.source if rule else "")


def _wanted(contents: Contents, config: MachineConfig) -> list[Placement]:
    """Where a kernel that could not be loaded wants to be."""
    match contents.kernel_format:
        case ImageFormat.BZIMAGE if config.decompress_where is Decompress.GUEST:
            return bzimage.segments(contents.kernel.data)
        case ImageFormat.MULTIBOOT:
            return multiboot.segments(contents.kernel.data)
        case ImageFormat.ELF:
            # A Multiboot header's addresses count more than the file's own.
            data = contents.kernel.data
            return multiboot.segments(data) or elf.segments(data)
        case ImageFormat.BZIMAGE if contents.vmlinux is not None:
            return elf.segments(contents.vmlinux)
        case _:
            return []
