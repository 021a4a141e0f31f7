"""The XSAVE family against this machine's processor, in both formats.

Compared are the memory that is stored and the state that is restored, with all of the components
that this processor has. What is requested, which components are in use and what memory holds
beforehand is hypothesis's choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders.completion import CompletedCpu, assemble_all
from builders.host_cpu import DATA, PAGE, READ_ONLY, UNMAPPED, CpuState, HostCpu, host_features
from builders.xsave import effective, fill, samples, xsave_area
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

bounded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.too_slow],
)

SAVES = tuple(
    f"{name} [rsi]" for name in ("xsave", "xsave64", "xsaveopt", "xsaveopt64", "xsavec", "xsavec64")
)
RESTORES = ("xrstor [rsi]", "xrstor64 [rsi]")
FORMS = SAVES + RESTORES


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    if not {"xsaveopt", "xsavec"} <= host_features():
        pytest.skip("this processor has no XSAVEOPT or XSAVEC")
    with HostCpu() as host:
        yield host


@pytest.fixture(scope="module")
def completed(host: HostCpu) -> CompletedCpu:
    return CompletedCpu(host)


def bitmaps(host: HostCpu) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, host.xcr0), st.sampled_from([host.xcr0, 7, 3, 2, 1, 0, -1]))


def state(host: HostCpu, data: st.DataObject, requested: int, memory: bytes) -> CpuState:
    in_use = data.draw(bitmaps(host)) & host.xcr0
    # A component that is all zeros need not count as in use: no byte of ours is zero.
    sample = bytes(byte | 1 for byte in data.draw(samples))
    xsave = bytearray(xsave_area(host, sample, in_use))
    if in_use & 2:
        xsave[24:28] = data.draw(st.integers(0, 0xFFFF)).to_bytes(4, "little")
    at = data.draw(st.sampled_from([DATA, DATA, DATA + 64, DATA + PAGE - 512, DATA + PAGE - 576]))
    requested &= (1 << 64) - 1
    eax, edx = requested & 0xFFFF_FFFF, requested >> 32
    gpr = (eax, 0, edx, 0, 0, 0, at, *[0] * 9)
    return CpuState(gpr, 0x202, 0, bytes(xsave), memory)


@bounded
@given(data=st.data())
def test_save_stores_what_the_processor_stores(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(SAVES))
    memory = fill(data.draw(samples), 3 * PAGE)
    before = state(host, data, data.draw(bitmaps(host)), memory)
    code = assemble_all(FORMS)[form]
    expected, got = host.execute(code, before), completed.execute(code, before)
    assert expected.vector is got.vector is None
    at = before.gpr[6] - DATA
    assert stored(got.state.memory, at) == stored(expected.state.memory, at)
    assert got.state.xsave == before.xsave


def stored(memory: bytes, at: int) -> bytes:
    """Memory, without FOP, FIP and FDP of the area at ``at``: they are not kept up to date."""
    return memory[: at + 5] + memory[at + 24 :]


@bounded
@given(data=st.data())
def test_restore_loads_what_the_processor_loads(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    """From an area that the processor itself has stored, in either format, and perhaps damaged."""
    code = assemble_all(FORMS)
    saving = data.draw(st.sampled_from(["xsave [rsi]", "xsavec [rsi]"]))
    saved = state(host, data, data.draw(bitmaps(host)), bytes(3 * PAGE))
    memory = bytearray(host.execute(code[saving], saved).state.memory)
    before = state(host, data, data.draw(bitmaps(host)), b"")
    before = before._replace(gpr=(*before.gpr[:6], saved.gpr[6], *before.gpr[7:]))
    if data.draw(st.booleans()):
        position = data.draw(st.sampled_from([*range(512, 576), 26, 27]))
        memory[saved.gpr[6] - DATA + position] ^= 1 << data.draw(st.integers(0, 7))
    before = before._replace(memory=bytes(memory))
    restoring = code[data.draw(st.sampled_from(RESTORES))]
    expected, got = host.execute(restoring, before), completed.execute(restoring, before)
    assert (got.vector, got.error_code) == (expected.vector, expected.error_code)
    if expected.vector is None:
        assert effective(host, got.state.xsave) == effective(host, expected.state.xsave)


@bounded
@given(data=st.data())
def test_area_that_cannot_be_used_faults_as_on_the_processor(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(FORMS))
    at = data.draw(
        st.sampled_from([DATA + 32, UNMAPPED, UNMAPPED - 64, UNMAPPED - 512, READ_ONLY, 1 << 47])
    )
    before = state(host, data, host.xcr0, bytes(3 * PAGE))
    before = before._replace(gpr=(*before.gpr[:6], at, *before.gpr[7:]))
    code = assemble_all(FORMS)[form]
    expected, got = host.execute(code, before), completed.execute(code, before)
    assert (got.vector, got.error_code) == (expected.vector, expected.error_code)
    if expected.vector == 14:
        # Which of the operand's pages is told is the processor's choice, if not the first byte.
        assert got.cr2 & -PAGE == expected.cr2 & -PAGE
