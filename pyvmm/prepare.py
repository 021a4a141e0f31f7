"""All that comes before KVM: a kernel in guest memory, and the plan for entering it.

    image -> load_kernel -> choose -> place_cmdline, place_initrd -> plan_boot -> blobs written

No part of it needs /dev/kvm: the board goes on from here to a virtual machine, and
``pyvmm explain`` shows what came of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pyvmm import boot
from pyvmm.arch.x86_64 import layout
from pyvmm.boot.handover import Handover, Module
from pyvmm.boot.memory_map import memory_map
from pyvmm.config import DEFAULT_CMDLINE, Tune
from pyvmm.errors import ConfigError, KernelImageError
from pyvmm.loader.cmdline import cmdline_limit, place_cmdline
from pyvmm.loader.image import unwrapped
from pyvmm.loader.initrd import initrd_size, place_initrd
from pyvmm.loader.load import Placement, load_kernel

if TYPE_CHECKING:
    from pyvmm.boot import Protocol
    from pyvmm.boot.handover import BootPlan
    from pyvmm.config import MachineConfig
    from pyvmm.loader.image import KernelImage
    from pyvmm.loader.load import LoadedKernel
    from pyvmm.memory import GuestMemory
    from pyvmm.tuning import Tuned

# As many as Linux's generator takes for a full seed (include/crypto/chacha.h, CHACHA_KEY_SIZE).
_RNG_SEED_BYTES = 32


class Prepared(NamedTuple):
    """A guest's memory is ready for its first instruction: what lies there, and the plan."""

    kernel: LoadedKernel
    protocol: Protocol
    entry_gpa: int
    plan: BootPlan
    placements: list[Placement]
    notes: list[str]
    """What the image was wrapped in, and what of it was used: for people who want to know."""
    tuned: Tuned | None = None
    """What the command line has become because kernel mode is emulated. None: this is no Linux that
    would know it, or it was not to be told."""


def prepare(
    config: MachineConfig, image: KernelImage, memory: GuestMemory, *, emulated: bool = False
) -> Prepared:
    """Put kernel, command line, initrd and the protocol's tables into ``memory``.

    ``emulated``: whether KVM emulates the guest's kernel mode.

    Raises KernelImageError, InitrdError or ConfigError if what the user gave cannot be booted as
    ``config`` has it, HostError if there is no memory to decompress it in.
    """
    image = unwrapped(image, memory.size_bytes)
    text = _choose_cmdline(config, image)
    if image.cmdline is not None:
        config._replace(cmdline=text).check()  # it may not go with what else was given
    initrd_source = image.initrd if config.initrd is None else config.initrd
    kernel = load_kernel(
        image,
        memory,
        decompress=config.decompress_where,
        kaslr=config.kaslr,
        initrd_bytes=initrd_size(initrd_source) if config.kaslr else 0,
    )
    try:
        protocol, entry_gpa = boot.choose(config.protocol, kernel)
    except KernelImageError as error:
        raise error.about(image.name) from error
    tuned: Tuned | None = None
    if config.tune is Tune.SOFTWARE or (config.tune is Tune.AUTO and emulated):
        tuned = _tune(text, image, kernel, memory, config.cpus)
        text = tuned.cmdline if tuned is not None else text
    if protocol is boot.Protocol.MULTIBOOT:  # which has the file's name in front
        text = f"{os.fsdecode(_name_of(config.kernel))} {text}"
    cmdline = place_cmdline(text, memory, kernel)
    initrd = place_initrd(initrd_source, memory, kernel)
    modules = _place_modules(config, protocol, memory, kernel, initrd)
    handover = Handover(
        kernel,
        memory_map(memory),
        cmdline,
        initrd,
        modules=modules,
        rsdp_gpa=layout.ACPI_GPA,
        rng_seed=os.urandom(_RNG_SEED_BYTES),
    )
    plan = boot.plan_boot(protocol, entry_gpa, handover)
    placements = [*kernel.placements, cmdline, *([initrd] if initrd else [])]
    placements += [module.placement for module in modules if module.placement is not initrd]
    for blob in plan.blobs:
        blob.write_to(memory)
        placements.append(Placement(blob.name, blob.gpa, len(blob.data)))
    return Prepared(kernel, protocol, entry_gpa, plan, placements, _notes(config, image), tuned)


def _choose_cmdline(config: MachineConfig, image: KernelImage) -> str:
    """What was given, or else what is in the image, or else what is good for most kernels."""
    if config.cmdline is not None:
        return config.cmdline
    if image.cmdline is not None:
        return image.cmdline.decode("utf-8", "surrogateescape")
    return DEFAULT_CMDLINE


def _tune(
    text: str, image: KernelImage, kernel: LoadedKernel, memory: GuestMemory, cpu_count: int
) -> Tuned | None:
    """The command line for an emulated kernel mode; None if this is no Linux."""
    from pyvmm.loader.linux_version import linux_version
    from pyvmm.tuning import tune_for_emulation

    version = linux_version(image.data, kernel, memory)
    if version is None:
        return None
    return tune_for_emulation(text, version, cmdline_limit(kernel) + 1, cpu_count)


def _notes(config: MachineConfig, image: KernelImage) -> list[str]:
    notes = [
        f"{layer.name}: the kernel is the {layer.size_bytes} bytes at {layer.offset:#x} in it"
        for layer in image.layers
    ]
    for option, given, own in (
        ("--cmdline", config.cmdline, image.cmdline),
        ("--initrd", config.initrd, image.initrd),
    ):
        if own is not None:
            used = "is used" if given is None else f"is not used, as {option} was given"
            notes.append(f"the image's own {option[2:]}, {len(own)} bytes, {used}")
    return notes


def _place_modules(
    config: MachineConfig,
    protocol: Protocol,
    memory: GuestMemory,
    kernel: LoadedKernel,
    initrd: Placement | None,
) -> tuple[Module, ...]:
    """The initrd, which is in memory already, and the other modules, each below the one before."""
    if config.modules and protocol not in boot.PROTOCOLS_WITH_MODULES:
        raise ConfigError(
            f"--module was given, and the kernel is entered by {protocol.value}, which knows of no "
            "modules but the initrd; use --initrd, or a kernel with a PVH note or a Multiboot "
            "header"
        )
    modules = []
    if initrd is not None:
        modules.append(Module(initrd, _name_of(config.initrd or config.kernel)))
    for path, cmdline in config.modules:
        below_gpa = modules[-1].placement.base_gpa if modules else None
        placement = place_initrd(path, memory, kernel, below_gpa=below_gpa, name="module")
        if placement is None:
            raise ConfigError(f"{path}: is empty; a module must have at least one byte")
        modules.append(Module(placement, _name_of(path), os.fsencode(cmdline)))
    return tuple(modules)


def _name_of(path: str) -> bytes:
    """The file's name, as the first word of a line: spaces would end it."""
    return os.fsencode(os.path.basename(path)).replace(b" ", b"_")
