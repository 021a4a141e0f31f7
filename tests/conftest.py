"""What the markers ``kvm`` and ``boot`` need: a KVM that makes VMs.

Without one such tests are skipped, with the reason; where the environment says CI=true they fail,
because there a skipped test would look like a passed one.
"""

from __future__ import annotations

import functools
import os

import pytest


@functools.cache
def why_no_kvm() -> str | None:
    """What keeps this machine from running guests; None if nothing does."""
    from kvm_bindings import Kvm, KvmError

    try:
        with Kvm() as kvm, kvm.create_vm():
            return None
    except KvmError as error:
        return str(error)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not any(item.iter_markers("kvm")) and not any(item.iter_markers("boot")):
        return
    reason = why_no_kvm()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have a usable KVM: {reason}", pytrace=False)
    pytest.skip(reason)
