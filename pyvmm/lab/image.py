"""What the lab's machine starts from: a Debian kernel, some of its modules, a busybox initramfs.

All of it is fetched by pyvmm.fetch and made into two files in the cache, each with a hash of what
it was made from in its name: when an input changes, another file is made.

    $XDG_CACHE_HOME/pyvmm/lab/vmlinux-<hash>      the kernel, decompressed: QEMU loads that faster
    $XDG_CACHE_HOME/pyvmm/lab/initramfs-<hash>    busybox, init.sh, the modules in their order
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.cache import cache_dir
from pyvmm.fetch import fetch_busybox, fetch_kernel, fetch_kernel_modules
from pyvmm.initramfs import build_initramfs
from pyvmm.loader.files import write_whole
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import extract_vmlinux

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.apt import Progress

# Debian's cloud kernels have no 9p, by which the lab sees the host's files.
KERNEL = "debian:6.1-generic"

# What the lab's init needs; what these modules depend on is found in them.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "kvm_amd")

# Where in the package these and all that they depend on lie.
_MODULE_FILES = (
    r"lib/modules/[^/]+/kernel/"
    r"(arch/x86/kvm|drivers/(crypto/ccp|virtio)|fs/(9p|fscache|netfs|overlayfs)|net/9p|virt/lib)"
    r"/[^/]+\.ko"
)


class LabImage(NamedTuple):
    """The files that QEMU is given."""

    kernel: str
    initramfs: str


def prepare_image(progress: Progress | None = None) -> LabImage:
    """The lab's kernel and initramfs, from the cache or newly made.

    Raises FetchError if a part cannot be had.
    """
    kernel = fetch_kernel(KERNEL, progress=progress)
    modules_tar = fetch_kernel_modules(kernel, _MODULE_FILES, progress=progress)
    busybox = fetch_busybox(progress=progress)
    directory = os.path.join(cache_dir(), "lab")
    os.makedirs(directory, exist_ok=True)

    vmlinux = os.path.join(directory, f"vmlinux-{kernel.sha256[:16]}")
    if not os.path.exists(vmlinux):
        with KernelImage.open(kernel.path) as image:
            write_whole(vmlinux, extract_vmlinux(image))

    init = _read(os.path.join(os.path.dirname(__file__), "init.sh"))
    inputs = hashlib.sha256()
    for part in (init, _read(busybox), _read(modules_tar), _read(__file__)):
        inputs.update(hashlib.sha256(part).digest())
    initramfs = os.path.join(directory, f"initramfs-{inputs.hexdigest()[:16]}")
    if not os.path.exists(initramfs):
        _build_initramfs(initramfs, init, busybox, modules_tar)
    return LabImage(vmlinux, initramfs)


def _build_initramfs(path: str, init: bytes, busybox: str, modules_tar: str) -> None:
    modules = _read_modules(modules_tar)
    with tempfile.TemporaryDirectory(prefix="pyvmm-lab-") as work:
        order = load_order(modules, _MODULES)
        for name in order:
            write_whole(os.path.join(work, f"{name}.ko"), modules[name])
        lines = "".join(f"{name}.ko\n" for name in order)
        write_whole(os.path.join(work, "order"), lines.encode())
        build_initramfs(
            path, busybox_path=busybox, init_script=init, extra_files=[(work, "/modules")]
        )


def _read_modules(path: str) -> dict[str, bytes]:
    """The modules of a tar archive by name. Names have underscores, where files may have dashes."""
    modules = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                name = os.path.basename(member.name).removesuffix(".ko").replace("-", "_")
                modules[name] = file.read()
    return modules


# The section .modinfo is a list of "name=value", each ended by a NUL: include/linux/moduleparam.h
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def load_order(modules: Mapping[str, bytes], wanted: tuple[str, ...]) -> list[str]:
    """``wanted`` and all that it depends on, in an order in which insmod can load them.

    Raises KeyError for a module that is not there.
    """
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        found = _DEPENDS.search(modules[name])
        for dependency in (found[1] if found else b"").decode().split(","):
            if dependency:
                add(dependency.replace("-", "_"))
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
