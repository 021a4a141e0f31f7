"""Build Linux in our own configuration, out of the distribution's own source package.

    linux-source-6.1, from apt  --fetch-->  linux-source-6.1.tar.xz     in pyvmm's cache
                                --tar---->  the source, unmodified      in a temporary directory
    kernels/linux/tiny.config   --make--->  allnoconfig and those options, then bzImage
                                ------->    pyvmm's cache, under the kernel's name in the manifest

The same source, configuration and compiler give the same bytes: what the kernel's build records of
who built it, where and when is given fixed values (Documentation/kbuild/reproducible-builds.rst).
So a kernel is kept under a version that names the source's version and a checksum of the
configuration, and is built again when one of the two changes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from pyvmm.apt import newest_package
from pyvmm.cache import CachedFile, cache_dir
from pyvmm.errors import FetchError, PyvmmError
from pyvmm.fetch import ManifestEntry, cached_kernel, fetch_package_file, store_kernel
from pyvmm.fetch import list_kernels as _list_kernels

CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "linux", "tiny.config")

# What the kernel's build calls, and Debian's package for it (Documentation/process/changes.rst).
_TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "lz4": "lz4",
    "perl": "perl",
}
_LIBELF_HEADER = "/usr/include/libelf.h"  # for objtool
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "pyvmm",
    "KBUILD_BUILD_HOST": "pyvmm",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
}


class BuildError(PyvmmError):
    """The kernel could not be built; the message says what to do."""


def built_kernels() -> list[ManifestEntry]:
    """The kernels of the manifest that are built here rather than fetched."""
    return [entry for entry in _list_kernels() if entry.built]


def build(entry: ManifestEntry, *, jobs: int) -> CachedFile:
    """The kernel of ``entry``, from the cache, or built with ``jobs`` processes at a time.

    Raises BuildError if a tool is missing or the build fails, FetchError if there is no source.
    """
    version = f"{newest_package(entry.package).version}+{_config_checksum()}"
    cached = cached_kernel(entry.name)
    if cached and cached.version == version:
        return cached
    _check_tools()
    source_package = entry.package.replace("\\", "")
    tarball = fetch_package_file(source_package, entry.member, update=True)
    os.makedirs(cache_dir(), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir()) as work:
        source = os.path.join(work, "source")
        out = os.path.join(work, "out")
        os.mkdir(source)
        os.mkdir(out)
        _run(["tar", "-xf", tarball, "--strip-components=1", "-C", source], "unpack the source")
        make = ["make", "-C", source, f"O={out}", "-s", f"-j{jobs}"]
        _run([*make, f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig"], "configure")
        check_config(_read(CONFIG), _read(os.path.join(out, ".config")))
        _run([*make, "bzImage"], "build")
        image = os.path.join(out, "arch", "x86", "boot", "bzImage")
        return store_kernel(entry, image, source_package, version)


def check_config(wanted: str, got: str) -> None:
    """Hold what was asked for against what Kconfig made of it.

    An option that depends on one that is off is dropped by Kconfig without a word.

    Raises BuildError naming the options that are not as ``wanted`` says.
    """
    actual = _options(got)
    missed = [
        f"{name} is {actual.get(name, 'n')}, not {value}"
        for name, value in _options(wanted).items()
        if actual.get(name, "n") != value
    ]
    if missed:
        raise BuildError(
            f"Kconfig did not take all of {os.path.basename(CONFIG)}: {'; '.join(missed)}; "
            "switch on what they depend on, or leave them out"
        )


def _options(config: str) -> dict[str, str]:
    lines = (line.partition("=") for line in config.splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, _, value in lines}


def _config_checksum() -> str:
    return hashlib.sha256(_read(CONFIG).encode()).hexdigest()[:12]


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _check_tools() -> None:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not os.path.exists(_LIBELF_HEADER):
        missing.append("libelf-dev")
    if missing:
        raise BuildError(
            f"to build a kernel these packages are missing: {' '.join(missing)}; install them with "
            f"`apt-get install {' '.join(missing)}`"
        )


def _run(command: Sequence[str], what: str) -> None:
    """Run one step. Its output is shown only if it fails."""
    result = subprocess.run(
        command,
        env={**os.environ, **_REPRODUCIBLE},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-20:])
        raise BuildError(f"cannot {what} ({command[0]} ended with {result.returncode}):\n{tail}")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the kernels that are named, or the first of them; say where they are."""
    entries = {name: e for e in built_kernels() for name in (e.name, *e.aliases)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        default=["linux:tiny"],
        help=f"one of {', '.join(entries)} (default: linux:tiny)",
    )
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    args = parser.parse_args(argv)
    try:
        for name in args.names:
            if name not in entries:
                raise BuildError(f"no kernel {name!r} is built here; expected {', '.join(entries)}")
            kernel = build(entries[name], jobs=args.jobs)
            print(f"{name}: {kernel.package} {kernel.version}\n  {kernel.path}")
    except (BuildError, FetchError, OSError) as error:
        print(f"build_kernel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
