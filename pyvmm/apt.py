"""What apt and dpkg do for us: find a package, download it, take files out of it.

    pattern of a name  --apt-cache-->  the newest package that matches, its version and SHA-256
                       --apt-get---->  the .deb, checked against that SHA-256
                       --dpkg-deb--->  files out of it

All of it as any user: nothing is installed. apt itself checks the package lists' signatures, and so
the SHA-256 that a .deb must have (apt-secure(8)). For a package of another architecture apt has
lists of its own in our cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.cache import cache_dir, cache_failure, parse_paragraph, sha256_of
from pyvmm.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from tarfile import TarInfo
    from typing import IO

    Progress = Callable[[str, int, int], None]
    """Called with what is being fetched, the bytes that have come, and the bytes in all."""


class Package(NamedTuple):
    """What apt knows of a package that it can download."""

    name: str
    version: str
    sha256: str
    size_bytes: int
    apt_options: tuple[str, ...] = ()
    """What apt must be told for it to know the package."""


def newest_package(pattern: str, architecture: str = "") -> Package:
    """The package with the highest version, of those that apt can download and that match.

    ``architecture``, by Debian's name, is one that is not this machine's. Raises FetchError if apt
    knows of none.
    """
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
            fields = parse_paragraph(paragraph)
            if "SHA256" in fields:  # not so if the package is only installed, from nowhere
                packages.append(
                    Package(
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


def download(package: Package, directory: str, progress: Progress | None) -> str:
    """Download ``package`` into ``directory`` and check it; return the .deb's path.

    Raises FetchError if it cannot be had.
    """
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
    if (actual := sha256_of(deb)) != package.sha256:
        raise FetchError(
            f"the download of {package.name} {package.version} has SHA-256 {actual}, expected "
            f"{package.sha256}; run `apt-get update` as root, then try again"
        )
    return deb


def extract(deb: str, pattern: str, target: str) -> None:
    """Copy the first regular file of a .deb whose path matches ``pattern`` to ``target``."""
    with closing(_matching_files(deb, pattern)) as files:
        member, content = next(files)
        with open(target, "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        os.chmod(target, 0o755 if member.mode & 0o100 else 0o644)


def extract_all(deb: str, pattern: str, target: str) -> None:
    """Copy all regular files of a .deb whose paths match ``pattern`` to a tar archive."""
    with tarfile.open(target, "w") as archive:
        for member, content in _matching_files(deb, pattern):
            archive.addfile(member, content)


def _matching_files(deb: str, pattern: str) -> Generator[tuple[TarInfo, IO[bytes]], None, None]:
    """The regular files of a .deb whose paths match ``pattern``.

    Raises FetchError if there is none, or if the .deb cannot be read.
    """
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
        raise cache_failure(error) from error
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


def _download_failed(package: Package, stderr: str) -> FetchError:
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


def _run(command: list[str]) -> tuple[int, str, str]:
    """Run a command of apt or dpkg; return its exit status, output and error output."""
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
