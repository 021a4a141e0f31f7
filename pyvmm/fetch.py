"""Kernels by name: fetched once through apt, kept in the user's cache, checked when used.

    name ("debian")  --manifest-->  the patterns of a package's name and of a path in it
                     --apt.py---->  the file out of the newest such package
                     --cache.py-->  the path of a copy

A name that is in the cache is resolved without apt, and without reading the manifest: a kernel must
start in milliseconds. (The name of the cache's directory for a kernel is resolved as well, and so
pins a version.) Imports that only fetching needs, apt.py's too, stand in the functions.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pyvmm import embedded
from pyvmm.cache import (
    CachedFile,
    cache_dir,
    entry_key,
    put_entry,
    read_entry,
    sha256_of,
    shelf_of,
    write_record,
)
from pyvmm.errors import ConfigError, FetchError

if TYPE_CHECKING:
    from pyvmm.apt import Package, Progress


class ManifestEntry(NamedTuple):
    """A kernel that has a name: a table of kernels/manifest.toml."""

    name: str
    description: str
    package: str
    """A regular expression for the whole name of the package."""
    member: str
    """A regular expression for the kernel's path in the package."""
    aliases: tuple[str, ...]
    built: bool = False
    """Whether it is built of that file by scripts/build_kernel, and not fetched."""
    architecture: str = ""
    """The package's, by Debian's name, if it is not one of this machine's."""


class _Wanted(NamedTuple):
    """One file of a package, and where in the cache it belongs."""

    name: str
    package: str
    member: str
    shelf: str
    """The directory of the cache (see cache.py)."""
    stored_as: str
    links: tuple[str, ...]
    many: bool = False
    """Whether all files that match are wanted, as a tar archive, instead of the first one."""
    architecture: str = ""


def resolve_kernel(argument: str, *, progress: Progress | None = None) -> str:
    """The path that ``--kernel argument`` stands for.

    A file of that name wins; what contains a ``/`` is always a path. ``embedded`` and
    ``embedded:bzimage`` are the kernel that comes with pyvmm. Anything else is a name of the
    manifest, taken from the cache or fetched.

    Raises ConfigError if it is neither a file nor a name, FetchError if it cannot be fetched.
    """
    if "/" in argument or os.path.exists(argument):
        return argument
    if argument in ("embedded", "embedded:elf"):
        return embedded.path("kernel.elf")
    if argument == "embedded:bzimage":
        return embedded.path("kernel.bzimage")
    if cached := cached_kernel(argument):
        return cached.path
    _manifest_entry(argument, "neither a file nor a kernel's name", also=("embedded",))
    return fetch_kernel(argument, progress=progress).path


def list_kernels() -> list[ManifestEntry]:
    """The manifest, in its order."""
    import tomllib

    with open(embedded.path("manifest.toml"), "rb") as manifest:
        kernels = tomllib.load(manifest)["kernels"]
    return [
        ManifestEntry(
            name,
            table["description"],
            table["package"],
            table["member"],
            tuple(table["aliases"]),
            table.get("built", False),
            table.get("architecture", ""),
        )
        for name, table in kernels.items()
    ]


def cached_kernel(name: str) -> CachedFile | None:
    """The kernel ``name`` if it is in the cache, unchanged since it was put there.

    Unchanged means its size and modification time; ``verify_kernel`` reads all of it.
    """
    return read_entry("kernels", name)


def fetch_kernel(
    name: str, *, update: bool = False, progress: Progress | None = None
) -> CachedFile:
    """The kernel ``name``, from the cache or through apt; ``update`` asks apt for a newer one.

    Raises ConfigError for a name that the manifest has not, FetchError if it cannot be had.
    """
    if not update and (cached := cached_kernel(name)):
        return cached
    entry = _manifest_entry(name)
    if entry.built:
        if cached := cached_kernel(name):
            return cached
        raise FetchError(
            f"{name} is not in the cache, and cannot be fetched: it is built, in some minutes, by "
            f"`scripts/build_kernel {name}` in a checkout of pyvmm"
        )
    links = (entry.name, *entry.aliases)
    wanted = _Wanted(
        entry.name, entry.package, entry.member, "kernels", "vmlinuz", links,
        architecture=entry.architecture,
    )  # fmt: skip
    return _fetch(wanted, progress)


def verify_kernel(name: str) -> CachedFile:
    """Check every byte of the cached kernel ``name`` against the checksum recorded for it.

    Raises ConfigError for a name that the manifest has not, FetchError if it is not in the cache
    or not what was put there.
    """
    cached = cached_kernel(name)
    if cached is None:
        _manifest_entry(name)
        raise FetchError(
            f"{name} is not in the cache {cache_dir()}, or was changed there; "
            f"run `pyvmm fetch {name}`"
        )
    if (actual := sha256_of(cached.path)) != cached.sha256:
        raise FetchError(
            f"{cached.path} has SHA-256 {actual}, expected {cached.sha256}; "
            f"remove {os.path.dirname(cached.path)} and run `pyvmm fetch {name}`"
        )
    return cached


def fetch_package_file(
    package: str, member: str, *, update: bool = False, progress: Progress | None = None
) -> str:
    """The path of a copy of one file of a package, such as busybox-static's ``bin/busybox``.

    ``member`` is a regular expression for the file's path in the package. The copy is kept in the
    cache for this very expression.

    Raises FetchError if it cannot be had.
    """
    import re

    shelf = shelf_of("files", member)
    cached = read_entry(shelf, package)
    if cached and not update:
        return cached.path
    wanted = _Wanted(
        package, re.escape(package), member, shelf, os.path.basename(member), (package,)
    )
    return _fetch(wanted, progress).path


def fetch_busybox(*, progress: Progress | None = None) -> str:
    """The path of a busybox that needs no libraries. Raises FetchError if it cannot be had."""
    return fetch_package_file("busybox-static", r"(usr/)?bin/busybox", progress=progress)


def store_kernel(entry: ManifestEntry, path: str, package: str, version: str) -> CachedFile:
    """Put the kernel in the file ``path``, which was built of ``package``, into the cache.

    From then on ``entry``'s names stand for it. Raises FetchError if the cache cannot be written.
    """
    import shutil

    def make(work: str) -> str:
        new = os.path.join(work, "entry")
        os.mkdir(new)
        shutil.copy(path, os.path.join(new, "vmlinuz"))
        source = {"Name": entry.name, "Package": package, "Version": version}
        write_record(new, "vmlinuz", source)
        return new

    key = entry_key(f"{entry.name.replace(':', '-')}_{package}", version)
    return put_entry("kernels", key, (entry.name, *entry.aliases), make)


def fetch_kernel_modules(
    kernel: CachedFile, members: str, *, progress: Progress | None = None
) -> str:
    """The path of a tar archive of modules, out of the very package that ``kernel`` came from.

    ``members`` is a regular expression for the modules' paths in the package. The archive is kept
    in the cache. Raises FetchError if it cannot be had.
    """
    import re

    shelf = shelf_of("modules", members)
    if cached := read_entry(shelf, entry_key(kernel.package, kernel.version)):
        return cached.path
    wanted = _Wanted(
        f"modules of {kernel.name}", re.escape(kernel.package), members, shelf, "modules.tar", (),
        many=True,
    )  # fmt: skip
    fetched = _fetch(wanted, progress)
    if fetched.version != kernel.version:
        raise FetchError(
            f"the distribution has {kernel.package} {fetched.version} now, the kernel in the cache "
            f"is {kernel.version}, and modules must be of the same; "
            f"run `pyvmm fetch --update {kernel.name}`"
        )
    return fetched.path


def _manifest_entry(
    name: str, what_else: str = "not the name of a kernel to fetch", also: tuple[str, ...] = ()
) -> ManifestEntry:
    """The entry of ``name``. Raises ConfigError, saying it is ``what_else``, if there is none."""
    entries = list_kernels()
    for entry in entries:
        if name == entry.name or name in entry.aliases:
            return entry
    import difflib

    names = [*also, *(known for entry in entries for known in (*entry.aliases, entry.name))]
    close = difflib.get_close_matches(name, names, n=1)
    raise ConfigError(
        f"{name!r} is {what_else}"
        + (f"; did you mean {close[0]}?" if close else "")
        + f" (the names are {', '.join(names)})"
    )


def _fetch(wanted: _Wanted, progress: Progress | None) -> CachedFile:
    """Find the newest package, have it in the cache, and let the names point there."""
    from pyvmm.apt import newest_package

    package = newest_package(wanted.package, wanted.architecture)
    return put_entry(
        wanted.shelf,
        entry_key(package.name, package.version),
        wanted.links,
        lambda work: _make_entry(wanted, package, work, progress),
    )


def _make_entry(wanted: _Wanted, package: Package, work: str, progress: Progress | None) -> str:
    """Download ``package`` and make an entry of the cache of it, in ``work``; return its path."""
    from pyvmm.apt import download, extract, extract_all

    deb = download(package, work, progress)
    new = os.path.join(work, "entry")
    os.mkdir(new)
    take = extract_all if wanted.many else extract
    take(deb, wanted.member, os.path.join(new, wanted.stored_as))
    source = {
        "Name": wanted.name,
        "Package": package.name,
        "Version": package.version,
        "Package-SHA256": package.sha256,
    }
    write_record(new, wanted.stored_as, source)
    return new
