"""An apt of our own making: the three commands that pyvmm calls, over a directory of packages.

    apt = FakeApt(tmp_path)
    apt.add_package("linux-image-6.1.0-9-cloud-amd64-unsigned", "6.1.9-1", {"boot/vmlinuz-9": b"x"})
    monkeypatch.setenv("PATH", apt.path)

The fakes are shell scripts that print what the real commands print; the .deb files are real ones,
made by dpkg-deb, and dpkg and dpkg-deb stay the system's own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

_APT_CACHE = """\
#!/bin/sh
echo "apt-cache $*" >> "$0.log"
cd '{root}'
while [ "$1" = -o ]; do shift 2; done
case $1 in
    pkgnames) ls packages ;;
    show) shift 2; for name; do cat "packages/$name/paragraph"; echo; done ;;
esac
"""

_APT_GET = """\
#!/bin/sh
echo "apt-get $*" >> "$0.log"
for word; do
    case $word in
        APT::Status-Fd=*) fd=${{word#*=}} ;;
        update) [ -f '{root}/failure' ] || exit 0 ;;
        indextargets) cat '{root}/targets'; exit ;;
    esac
done
if [ -f '{root}/failure' ]; then
    cat '{root}/failure' >&2
    exit 100
fi
echo "dlstatus:1:0.0000:Retrieving file 1 of 1" > "/dev/fd/$fd"
cp '{root}/packages/'"${{word%%=*}}"/*.deb .
echo "dlstatus:1:100.0000:Retrieving file 1 of 1" > "/dev/fd/$fd"
"""


class FakeApt:
    """An apt that knows the packages that were added, and remembers how it was called."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "fake-apt"
        self._bin = self._root / "bin"
        self._bin.mkdir(parents=True)
        (self._root / "packages").mkdir()
        (self._root / "targets").write_text("/var/lib/apt/lists/example_Packages\n")
        for name, script in (("apt-cache", _APT_CACHE), ("apt-get", _APT_GET)):
            command = self._bin / name
            command.write_text(script.format(root=self._root))
            command.chmod(0o755)

    @property
    def path(self) -> str:
        """A PATH on which the fakes come first."""
        return f"{self._bin}:{os.environ['PATH']}"

    @property
    def calls(self) -> list[str]:
        """The command lines so far, apt-cache's before apt-get's."""
        return [
            line for log in sorted(self._bin.glob("*.log")) for line in log.read_text().splitlines()
        ]

    def add_package(
        self, name: str, version: str, files: dict[str, bytes], *, sha256: str | None = None
    ) -> None:
        """Add a package with ``files`` in it; ``sha256`` lies about the .deb's checksum."""
        directory = self._root / "packages" / name
        tree = directory / "tree"
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        (tree / "DEBIAN" / "control").write_text(
            f"{control}Maintainer: nobody\nDescription: a test\n more: of it\n"
        )
        deb = directory / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
        subprocess.run(["dpkg-deb", "-b", tree, deb], check=True, stdout=subprocess.DEVNULL)
        content = deb.read_bytes()
        digest = sha256 or hashlib.sha256(content).hexdigest()
        (directory / "paragraph").write_text(
            f"{control}Description: a test\n SHA256: of no meaning here\n"
            f"Filename: pool/{deb.name}\nSize: {len(content)}\nSHA256: {digest}\n"
        )

    def lose_lists(self) -> None:
        """Be as on a machine where `apt-get update` has never run."""
        (self._root / "targets").write_text("")

    def fail_downloads(self, stderr: str) -> None:
        """Say ``stderr`` instead of downloading."""
        (self._root / "failure").write_text(stderr)
