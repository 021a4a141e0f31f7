"""What `pyvmm doctor` advises.

Its report as a whole is in tests/kvm/test_probe.py, and in tests/boot/test_cli_other.py.
"""

from __future__ import annotations

import grp
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvmm.cli.doctor import _access_remedy


@pytest.mark.parametrize(
    ("group", "mode", "advice"),
    [
        ("kvm", 0o660, "join its group: `sudo usermod -aG kvm $USER`"),
        ("virt", 0o666, "join its group: `sudo usermod -aG virt $USER`"),
        ("kvm", 0o600, "it is -rw------- of group kvm: give it to a group of its own"),
        ("kvm", 0o640, "it is -rw-r----- of group kvm: give it to a group of its own"),
        ("root", 0o660, "it is -rw-rw---- of group root: give it to a group of its own"),
    ],
)
def test_way_in_is_a_group_that_has_access_and_is_not_roots(
    group: str, mode: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=group))
    assert _access_remedy(str(device)).startswith(advice)
    assert "-aG root" not in _access_remedy(str(device))
