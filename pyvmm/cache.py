"""The user's cache: files that were fetched or built, each with a record of what it must look like.

``$XDG_CACHE_HOME/pyvmm`` (XDG Base Directory Specification) looks like this:

    kernels/<package>_<version>/vmlinuz    what was in the package
    kernels/<package>_<version>/record     where it came from, and what it must look like
    kernels/<name>                         a link to the directory above, for each name
    files/<pattern>/...                    the same for files that are no kernels
    modules/<pattern>/...                  the same for a kernel's modules, as a tar archive
    apt/<architecture>/                    apt's package lists of an architecture that is not ours

``kernels``, ``files/<pattern>`` and ``modules/<pattern>`` are shelves, the directories on them
entries. A <pattern> is a hash of the regular expression for the paths in the package.

An entry appears under its final name complete, by rename(2), so that two processes may make the
same one at once. A record is a paragraph of ``Field: value`` lines, as in apt's own output. What
only the making of an entry needs is imported in the functions: to find a kernel must take no time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable


class CachedFile(NamedTuple):
    """A file in the cache, and what its record says of it."""

    path: str
    name: str
    package: str
    version: str
    sha256: str


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


def shelf_of(kind: str, pattern: str) -> str:
    """The shelf, one of ``kind``, for what ``pattern`` matches in whatever package."""
    import hashlib

    return os.path.join(kind, hashlib.sha256(pattern.encode()).hexdigest()[:16])


def entry_key(package: str, version: str) -> str:
    """What an entry for a package is called: as apt calls its own files, a colon written %3a."""
    return f"{package}_{version.replace(':', '%3a')}"


def read_entry(shelf: str, key: str) -> CachedFile | None:
    """What is in the entry ``key``, or where that links to; None if it is not what was put there.

    That is seen by its size and modification time, not by all of its bytes.
    """
    return _read(os.path.join(cache_dir(), shelf, key))


def put_entry(
    shelf: str, key: str, links: tuple[str, ...], make: Callable[[str], str]
) -> CachedFile:
    """The entry ``key`` of the cache, with ``links`` that point to it.

    If it is not there ``make`` makes it, in the directory it is given, and returns its path.
    Raises FetchError if the cache cannot be written.
    """
    import tempfile

    cache = cache_dir()
    directory = os.path.join(cache, shelf, key)
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as work:
            if _read(directory) is None:
                _publish(make(work), directory, work)
            for link in links:
                new_link = os.path.join(work, "link")
                os.symlink(key, new_link)
                os.replace(new_link, os.path.join(cache, shelf, link))
    except OSError as error:
        raise cache_failure(error) from error
    entry = _read(directory)
    if entry is None:
        raise FetchError(f"{directory} was changed while it was made; try again")
    return entry


def write_record(directory: str, file_name: str, source: dict[str, str]) -> None:
    """Record in ``directory`` the ``source`` of the file in it, and what it looks like."""
    import time

    path = os.path.join(directory, file_name)
    status = os.stat(path)
    fields = {
        **source,
        "File": file_name,
        "Size": str(status.st_size),
        "Mtime-ns": str(status.st_mtime_ns),
        "SHA256": sha256_of(path),
        "Fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with open(os.path.join(directory, "record"), "w", encoding="utf-8") as record:
        record.writelines(f"{field}: {value}\n" for field, value in fields.items())


def cache_failure(error: OSError) -> FetchError:
    """What to raise for an ``error`` from writing to the cache."""
    return FetchError(
        f"the cache {cache_dir()} cannot be written: {error.strerror or error}; "
        "make room there or give yourself the permission, or set XDG_CACHE_HOME"
    )


def sha256_of(path: str) -> str:
    """The SHA-256 of the file ``path``, in hexadecimal."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_paragraph(text: str) -> dict[str, str]:
    """The ``Field: value`` lines of one paragraph (deb-control(5)), without continuation lines."""
    fields = {}
    for line in text.splitlines():
        field, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            fields[field] = value.strip()
    return fields


def _read(directory: str) -> CachedFile | None:
    """What ``directory`` holds, or None if that is nothing, or not what its record says."""
    try:
        directory = os.path.realpath(directory)
        with open(os.path.join(directory, "record"), encoding="utf-8") as record:
            fields = parse_paragraph(record.read())
        path = os.path.join(directory, fields["File"])
        status = os.stat(path)
        if (str(status.st_size), str(status.st_mtime_ns)) != (fields["Size"], fields["Mtime-ns"]):
            return None
        return CachedFile(
            path, fields["Name"], fields["Package"], fields["Version"], fields["SHA256"]
        )
    except (OSError, ValueError, KeyError):
        return None


def _publish(new: str, directory: str, work: str) -> None:
    """Rename ``new`` to ``directory``, unless another process has put a good entry there."""
    try:
        os.rename(new, directory)
        return
    except OSError:
        if _read(directory):
            return
    # What is there is damaged, and gives way; or another process is just doing the same.
    try:
        os.rename(directory, os.path.join(work, "damaged"))
    except FileNotFoundError:
        pass
    try:
        os.rename(new, directory)
    except OSError:
        if _read(directory) is None:
            raise
