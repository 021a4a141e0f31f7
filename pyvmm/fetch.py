"""Kernels by name: fetched once through apt, kept in the user's cache, checked when used.

    name ("debian")  --manifest-->  pattern of a package's name
                     --apt-cache->  the newest package that matches, its version and SHA-256
                     --apt-get--->  the .deb, checked against that SHA-256
                     --dpkg-deb-->  the one file that is wanted
                     ------------>  the cache

The cache, ``$XDG_CACHE_HOME/pyvmm`` (XDG Base Directory Specification), looks like this:

    kernels/<package>_<version>/vmlinuz    what was in the package
    kernels/<package>_<version>/record     where it came from, and what it must look like
    kernels/<name>                         a link to the directory above, for each name
    files/<pattern>/...                    the same for files that are no kernels
    modules/<pattern>/...                  the same for a kernel's modules, as a tar archive
    apt/<architecture>/                    apt's package lists of an architecture that is not ours

A <pattern> is a hash of the regular expression for the paths in the package.

A directory appears under its final name complete, by rename(2), so that two processes may fetch
the same kernel at once. A record is a paragraph of ``Field: value`` lines, as in apt's own
output. A name that is in the cache is resolved without apt, and without reading the manifest: a
kernel must start in milliseconds. (The directory's own name is resolved as well, and so pins a
version.) Imports that only fetching needs stand in the functions.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pyvmm import embedded
from pyvmm.errors import ConfigError, FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from tarfile import TarInfo
    from typing import IO

    Progress = Callable[[str, int, int], None]
    """Called with what is being fetched, the bytes that have come, and the bytes in all."""


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


class FetchedKernel(NamedTuple):
    """A kernel in the cache."""

    path: str
    name: str
    package: str
    version: str
    sha256: str


class _Package(NamedTuple):
    """What apt knows of a package that it can download."""

    name: str
    version: str
    sha256: str
    size_bytes: int
    apt_options: tuple[str, ...] = ()
    """What apt must be told for it to know the package."""


class _Wanted(NamedTuple):
    """One file of a package, and where in the cache it belongs."""

    name: str
    package: str
    member: str
    shelf: str
    """The directory of the cache: ``kernels`` or ``files``."""
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


def cached_kernel(name: str) -> FetchedKernel | None:
    """The kernel ``name`` if it is in the cache, unchanged since it was put there.

    Unchanged means its size and modification time; ``verify_kernel`` reads all of it.
    """
    return _read_entry(os.path.join(cache_dir(), "kernels", name))


def fetch_kernel(
    name: str, *, update: bool = False, progress: Progress | None = None
) -> FetchedKernel:
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


def verify_kernel(name: str) -> FetchedKernel:
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
    if (actual := _sha256_of(cached.path)) != cached.sha256:
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

    shelf = _shelf("files", member)
    cached = _read_entry(os.path.join(cache_dir(), shelf, package))
    if cached and not update:
        return cached.path
    wanted = _Wanted(
        package, re.escape(package), member, shelf, os.path.basename(member), (package,)
    )
    return _fetch(wanted, progress).path


def fetch_busybox(*, progress: Progress | None = None) -> str:
    """The path of a busybox that needs no libraries. Raises FetchError if it cannot be had."""
    return fetch_package_file("busybox-static", r"(usr/)?bin/busybox", progress=progress)


def newest_version(package: str) -> str:
    """The version of the newest package whose name matches the regular expression ``package``.

    Raises FetchError if apt knows of none.
    """
    return _newest_package(package).version


def store_kernel(entry: ManifestEntry, path: str, package: str, version: str) -> FetchedKernel:
    """Put the kernel in the file ``path``, which was built of ``package``, into the cache.

    From then on ``entry``'s names stand for it. Raises FetchError if the cache cannot be written.
    """
    import shutil

    def make(work: str) -> str:
        new = os.path.join(work, "entry")
        os.mkdir(new)
        shutil.copy(path, os.path.join(new, "vmlinuz"))
        source = {"Name": entry.name, "Package": package, "Version": version}
        _write_record(new, "vmlinuz", source)
        return new

    key = _cache_key(f"{entry.name.replace(':', '-')}_{package}", version)
    return _put("kernels", key, (entry.name, *entry.aliases), make)


def fetch_kernel_modules(
    kernel: FetchedKernel, members: str, *, progress: Progress | None = None
) -> str:
    """The path of a tar archive of modules, out of the very package that ``kernel`` came from.

    ``members`` is a regular expression for the modules' paths in the package. The archive is kept
    in the cache. Raises FetchError if it cannot be had.
    """
    import re

    shelf = _shelf("modules", members)
    entry = os.path.join(cache_dir(), shelf, _cache_key(kernel.package, kernel.version))
    if cached := _read_entry(entry):
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


# The cache.


def cache_dir() -> str:
    """Where everything that is fetched, and what is made of it, is kept.

    Raises FetchError if the user has no home, and names no other place.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, empty, or relative, which the specification ignores
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            raise FetchError(
                f"there is no home directory for user id {os.getuid()} to keep a cache in; "
                "set XDG_CACHE_HOME, or HOME, to the path of a directory"
            )
        base = os.path.join(home, ".cache")
    return os.path.join(base, "pyvmm")


def _shelf(kind: str, pattern: str) -> str:
    """The directory of the cache for what ``pattern`` matches, of whatever package."""
    import hashlib

    return os.path.join(kind, hashlib.sha256(pattern.encode()).hexdigest()[:16])


def _cache_key(package: str, version: str) -> str:
    # A colon in a version is written as apt writes it in the names of its own files.
    return f"{package}_{version.replace(':', '%3a')}"


def _read_entry(directory: str) -> FetchedKernel | None:
    """What ``directory`` holds, or None if that is nothing, or not what its record says."""
    try:
        directory = os.path.realpath(directory)
        with open(os.path.join(directory, "record"), encoding="utf-8") as record:
            fields = _parse_paragraph(record.read())
        path = os.path.join(directory, fields["File"])
        status = os.stat(path)
        if (str(status.st_size), str(status.st_mtime_ns)) != (fields["Size"], fields["Mtime-ns"]):
            return None
        return FetchedKernel(
            path, fields["Name"], fields["Package"], fields["Version"], fields["SHA256"]
        )
    except (OSError, ValueError, KeyError):
        return None


def _fetch(wanted: _Wanted, progress: Progress | None) -> FetchedKernel:
    """Find the newest package, have it in the cache, and let the names point there."""
    package = _newest_package(wanted.package, wanted.architecture)
    return _put(
        wanted.shelf,
        _cache_key(package.name, package.version),
        wanted.links,
        lambda work: _make_entry(wanted, package, work, progress),
    )


def _put(
    shelf_name: str, key: str, links: tuple[str, ...], make: Callable[[str], str]
) -> FetchedKernel:
    """The entry ``key`` of the cache, with ``links`` that point to it.

    If it is not there ``make`` makes it, in the directory it is given, and returns its path.
    """
    import tempfile

    cache = cache_dir()
    shelf = os.path.join(cache, shelf_name)
    directory = os.path.join(shelf, key)
    try:
        os.makedirs(shelf, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as work:
            if _read_entry(directory) is None:
                _publish(make(work), directory, work)
            for link in links:
                new_link = os.path.join(work, "link")
                os.symlink(key, new_link)
                os.replace(new_link, os.path.join(shelf, link))
    except OSError as error:
        raise _no_cache(error) from error
    entry = _read_entry(directory)
    if entry is None:
        raise FetchError(f"{directory} was changed while it was made; try again")
    return entry


def _no_cache(error: OSError) -> FetchError:
    return FetchError(
        f"the cache {cache_dir()} cannot be written: {error.strerror or error}; "
        "make room there or give yourself the permission, or set XDG_CACHE_HOME"
    )


def _make_entry(wanted: _Wanted, package: _Package, work: str, progress: Progress | None) -> str:
    """Download ``package`` and make an entry of the cache of it, in ``work``; return its path."""
    deb = _download(package, work, progress)
    new = os.path.join(work, "entry")
    os.mkdir(new)
    extract = _extract_all if wanted.many else _extract
    extract(deb, wanted.member, os.path.join(new, wanted.stored_as))
    source = {
        "Name": wanted.name,
        "Package": package.name,
        "Version": package.version,
        "Package-SHA256": package.sha256,
    }
    _write_record(new, wanted.stored_as, source)
    return new


def _write_record(directory: str, file_name: str, source: dict[str, str]) -> None:
    """Record in ``directory`` the ``source`` of the file in it, and what it looks like."""
    import time

    path = os.path.join(directory, file_name)
    status = os.stat(path)
    fields = {
        **source,
        "File": file_name,
        "Size": str(status.st_size),
        "Mtime-ns": str(status.st_mtime_ns),
        "SHA256": _sha256_of(path),
        "Fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with open(os.path.join(directory, "record"), "w", encoding="utf-8") as record:
        record.writelines(f"{field}: {value}\n" for field, value in fields.items())


def _publish(new: str, directory: str, work: str) -> None:
    """Rename ``new`` to ``directory``, unless another process has put a good entry there."""
    try:
        os.rename(new, directory)
        return
    except OSError:
        if _read_entry(directory):
            return
    # What is there is damaged, and gives way; or another process is just doing the same.
    try:
        os.rename(directory, os.path.join(work, "damaged"))
    except FileNotFoundError:
        pass
    try:
        os.rename(new, directory)
    except OSError:
        if _read_entry(directory) is None:
            raise


def _sha256_of(path: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_paragraph(text: str) -> dict[str, str]:
    """The ``Field: value`` lines of one paragraph (deb-control(5)), without continuation lines."""
    fields = {}
    for line in text.splitlines():
        field, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            fields[field] = value.strip()
    return fields


# apt.


def _run(command: list[str]) -> tuple[int, str, str]:
    """Run a command of apt or dpkg; return its exit status, output and error output."""
    import subprocess

    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        raise _no_apt(command[0]) from None
    return result.returncode, result.stdout, result.stderr


def _no_apt(command: str) -> FetchError:
    return FetchError(
        f"{command} is not on this machine; pyvmm fetches kernels and tools with apt, as Debian "
        "has it: here, get the file by other means and give its path"
    )


def _foreign_apt(architecture: str) -> tuple[str, ...]:
    """The options with which apt is one for ``architecture``, its package lists up to date.

    They are kept in the cache, signed and checked as the system's own are, by the system's own
    sources: those are read, and nothing of the system is changed, so root is not needed.
    """
    state = os.path.join(cache_dir(), "apt", architecture)
    try:
        for directory in ("lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(state, directory), exist_ok=True)
    except OSError as error:
        raise _no_cache(error) from error
    settings = [
        f"APT::Architecture={architecture}",
        f"Dir::State={state}",
        f"Dir::State::Lists={state}/lists",
        f"Dir::Cache={state}/cache",
        *_sandbox_settings(),
    ]
    options = tuple(word for setting in settings for word in ("-o", setting))
    status, _, errors = _run(["apt-get", "-q", *options, "update"])
    if status != 0:
        said = next((line for line in errors.splitlines() if line.startswith("E:")), errors)
        raise FetchError(
            f"apt-get update failed for {architecture}: {said.removeprefix('E:').strip()}; check "
            "the network, and the proxy if there is one, then try again"
        )
    return options


def _sandbox_settings() -> list[str]:
    """Root's apt would download as the user _apt, who may not write into directories of ours."""
    return ["APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def _newest_package(pattern: str, architecture: str = "") -> _Package:
    """The package with the highest version, of those that apt can download and that match."""
    import re

    expression = re.compile(pattern)
    options = _foreign_apt(architecture) if architecture else ()
    status, output, errors = _run(["apt-cache", *options, "pkgnames"])
    if status != 0:
        raise FetchError(
            f"apt-cache pkgnames failed: {errors.strip()}; does `apt-get update` help?"
        )
    names = sorted(name for name in output.split() if expression.fullmatch(name))
    packages = []
    if names:
        _, output, _ = _run(["apt-cache", *options, "show", "--no-all-versions", *names])
        for paragraph in output.split("\n\n"):
            fields = _parse_paragraph(paragraph)
            if "SHA256" in fields:  # not so if the package is only installed, from nowhere
                packages.append(
                    _Package(
                        fields["Package"],
                        fields["Version"],
                        fields["SHA256"],
                        int(fields["Size"]),
                        options,
                    )
                )
    if not packages:
        _, lists, _ = _run(["apt-get", *options, "indextargets", "--format", "$(FILENAME)"])
        if not lists.strip() and architecture:
            raise FetchError(
                f"this machine's package sources have nothing for {architecture}; add one that "
                "has, or give the kernel's file"
            )
        if not lists.strip():
            raise FetchError(
                "apt's package lists are empty; run `apt-get update` as root, then try again"
            )
        raise FetchError(
            f"apt knows no package whose name matches {pattern}; run `apt-get update` as root if "
            "its lists are old, or choose another of `pyvmm fetch --list`, if this release of the "
            "distribution does not have it"
        )
    newest = packages[0]
    for package in packages[1:]:
        status, _, _ = _run(["dpkg", "--compare-versions", package.version, "gt", newest.version])
        if status == 0:
            newest = package
    return newest


def _download(package: _Package, directory: str, progress: Progress | None) -> str:
    """Download ``package`` into ``directory`` and check it; return the .deb's path."""
    import subprocess

    status_read, status_write = os.pipe()
    command = ["apt-get", "-q", *package.apt_options]
    for setting in [f"APT::Status-Fd={status_write}", *_sandbox_settings()]:
        command += ["-o", setting]
    command += ["download", f"{package.name}={package.version}"]
    try:
        with (
            open(status_read, encoding="utf-8", errors="replace") as status_lines,
            # In memory: if the disk is full, apt has to say so somewhere else.
            open(os.memfd_create("errors"), "w+", encoding="utf-8", errors="replace") as errors,
        ):
            try:
                process = subprocess.Popen(
                    command,
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(status_write,),
                    env={**os.environ, "LC_ALL": "C.UTF-8"},
                )
            finally:
                os.close(status_write)
            with process:
                for line in status_lines:  # dlstatus:<item>:<percent>:<text>
                    fields = line.split(":")
                    if progress and fields[0] == "dlstatus" and len(fields) > 2:
                        done = int(float(fields[2]) / 100 * package.size_bytes)
                        progress(package.name, done, package.size_bytes)
            if process.returncode != 0:
                errors.seek(0)
                raise _download_failed(package, errors.read())
    except FileNotFoundError:
        raise _no_apt(command[0]) from None
    debs = [name for name in os.listdir(directory) if name.endswith(".deb")]
    if len(debs) != 1:
        raise FetchError(
            f"apt-get download {package.name} left {len(debs)} .deb files, expected one; try again"
        )
    deb = os.path.join(directory, debs[0])
    if (actual := _sha256_of(deb)) != package.sha256:
        raise FetchError(
            f"the download of {package.name} {package.version} has SHA-256 {actual}, expected "
            f"{package.sha256}; run `apt-get update` as root, then try again"
        )
    return deb


def _download_failed(package: _Package, stderr: str) -> FetchError:
    """What apt said, and what to do about it."""
    lines = [line[2:].strip() for line in stderr.splitlines() if line.startswith("E:")]
    said = lines[0] if lines else "it did not say why"
    if "No space left" in said:
        remedy = f"make room in {cache_dir()}, or set XDG_CACHE_HOME"
    elif "404" in said:
        remedy = "apt's package lists are old: run `apt-get update` as root, then try again"
    else:
        remedy = "check the network, and the proxy if there is one, then try again"
    return FetchError(f"apt-get could not download {package.name}: {said}; {remedy}")


def _extract(deb: str, pattern: str, target: str) -> None:
    """Copy the first regular file of a .deb whose path matches ``pattern`` to ``target``."""
    import shutil
    from contextlib import closing

    with closing(_matching_files(deb, pattern)) as files:
        member, content = next(files)
        with open(target, "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        os.chmod(target, 0o755 if member.mode & 0o100 else 0o644)


def _extract_all(deb: str, pattern: str, target: str) -> None:
    """Copy all regular files of a .deb whose paths match ``pattern`` to a tar archive."""
    import tarfile

    with tarfile.open(target, "w") as archive:
        for member, content in _matching_files(deb, pattern):
            archive.addfile(member, content)


def _matching_files(deb: str, pattern: str) -> Generator[tuple[TarInfo, IO[bytes]], None, None]:
    """The regular files of a .deb whose paths match ``pattern``.

    Raises FetchError if there is none, or if the .deb cannot be read.
    """
    import re
    import subprocess
    import tarfile

    expression = re.compile(pattern)
    found = False
    try:
        with (
            subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", deb],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content and expression.fullmatch(member.name.removeprefix("./")):
                    found = True
                    yield member, content
    except FileNotFoundError:
        raise _no_apt("dpkg-deb") from None
    except tarfile.TarError as error:
        raise FetchError(
            f"{os.path.basename(deb)} cannot be unpacked: {error}; try again"
        ) from error
    if not found:
        raise FetchError(
            f"{os.path.basename(deb)} has no file that matches {pattern}; is this another release "
            "of the distribution? give the file's path instead"
        )
