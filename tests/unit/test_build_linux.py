"""scripts/build_kernel: a source package of our own making, the real make, a cache of its own.

The source is a Makefile with the two targets that are asked for. That the configuration makes a
kernel that boots is shown where one is built: tests/lab.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import build_linux
import pytest
from build_linux import BuildError, check_config
from builders.fake_apt import FakeApt

from pyvmm.cli.main import main
from pyvmm.errors import FetchError
from pyvmm.fetch import cached_kernel, fetch_kernel, resolve_kernel

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="the packages are made with dpkg-deb"
)

CHECK_TOOLS = build_linux._check_tools

# What is recorded of the builder ends up in the image, as in Linux.
MAKEFILE = """\
allnoconfig:
\tcp $(KCONFIG_ALLCONFIG) $(O)/.config
bzImage:
\tmkdir -p $(O)/arch/x86/boot
\techo "$(KBUILD_BUILD_USER)@$(KBUILD_BUILD_HOST) $(KBUILD_BUILD_TIMESTAMP)" \\
\t\t> $(O)/arch/x86/boot/bzImage
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """An apt that has Linux's source."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Whether they are installed is not the point of these tests.
    monkeypatch.setattr(build_linux, "_check_tools", lambda: None)
    fake = FakeApt(tmp_path)
    monkeypatch.setenv("PATH", fake.path)
    add_source(fake, "6.1.9-1", MAKEFILE)
    return fake


def add_source(apt: FakeApt, version: str, makefile: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        info = tarfile.TarInfo("linux-source-6.1/Makefile")
        info.size = len(makefile)
        tar.addfile(info, io.BytesIO(makefile.encode()))
    files = {"usr/src/linux-source-6.1.tar.xz": archive.getvalue()}
    apt.add_package("linux-source-6.1", version, files)


def test_built_kernel_goes_by_its_names(apt: FakeApt) -> None:
    assert build_linux.main(["-j1"]) == 0
    path = resolve_kernel("linux:tiny")
    assert resolve_kernel("linux:tiny-6.1") == path
    assert Path(path).read_text() == "pyvmm@pyvmm 1970-01-01\n"


def test_built_kernel_is_not_built_again(apt: FakeApt) -> None:
    build_linux.main([])
    downloads = [call for call in apt.calls if call.startswith("apt-get")]
    build_linux.main([])
    assert [call for call in apt.calls if call.startswith("apt-get")] == downloads


def test_kernel_is_built_again_for_another_configuration(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_linux.main([])
    first = cached_kernel("linux:tiny")
    config = tmp_path / "other.config"
    config.write_text("CONFIG_SMP=y\n")
    monkeypatch.setattr(build_linux, "CONFIG", str(config))
    build_linux.main([])
    second = cached_kernel("linux:tiny")
    assert first
    assert second
    assert second.version != first.version


def test_build_leaves_nothing_but_source_and_kernel(apt: FakeApt, tmp_path: Path) -> None:
    build_linux.main([])
    assert sorted(path.name for path in (tmp_path / "cache" / "pyvmm").iterdir()) == [
        "files",
        "kernels",
    ]


def test_failed_build_shows_what_the_compiler_said(
    apt: FakeApt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = MAKEFILE.replace("\tmkdir", "\techo 'error: no such thing'; exit 1\n\tmkdir")
    shutil.rmtree(tmp_path / "fake-apt" / "packages" / "linux-source-6.1")
    add_source(apt, "6.1.10-1", broken)
    assert build_linux.main([]) == 1
    message = capsys.readouterr().err
    assert "cannot build (make ended with 2)" in message
    assert "error: no such thing" in message
    assert cached_kernel("linux:tiny") is None


def test_missing_tools_are_named_with_their_packages(
    apt: FakeApt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_linux, "_check_tools", CHECK_TOOLS)
    monkeypatch.setattr(
        shutil, "which", lambda tool: None if tool in ("flex", "ld") else f"/bin/{tool}"
    )
    assert build_linux.main([]) == 1
    assert "apt-get install binutils flex" in capsys.readouterr().err


def test_unknown_kernel_is_told_which_there_are(
    apt: FakeApt, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_linux.main(["linux:huge"]) == 1
    assert "no kernel 'linux:huge' is built here; expected linux:tiny" in capsys.readouterr().err


def test_option_that_kconfig_dropped_is_an_error() -> None:
    check_config("CONFIG_A=y\nCONFIG_B=n\n", "CONFIG_A=y\n# CONFIG_B is not set\n")
    with pytest.raises(BuildError, match="CONFIG_C is n, not y"):
        check_config("CONFIG_A=y\nCONFIG_C=y\n", "CONFIG_A=y\n# CONFIG_C is not set\n")
    with pytest.raises(BuildError, match="CONFIG_N is 1, not 32"):
        check_config("CONFIG_N=32\n", "CONFIG_N=1\n")


def test_kernel_that_is_not_built_says_how(
    apt: FakeApt, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FetchError, match="is built, in some minutes, by `scripts/build_kernel"):
        fetch_kernel("linux:tiny")
    assert main(["run", "--kernel", "linux:tiny"]) == 1
    assert "scripts/build_kernel linux:tiny" in capsys.readouterr().err


def test_list_tells_what_is_built(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    build_linux.main([])
    capsys.readouterr()
    main(["fetch", "--list"])
    output = capsys.readouterr().out
    assert "built: 6.1.9-1+" in output
    assert "not built yet" in output
