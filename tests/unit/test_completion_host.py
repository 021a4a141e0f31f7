"""Completed instructions against this machine's processor, which executes the same ones.

Each instruction's forms (sizes, registers, REX and VEX encodings, memory operands) get operands
that hypothesis chooses; general registers, flags, vector registers and memory must be alike
afterwards, or the exceptions, their error codes and CR2. Flags that the manuals (SDM 2) leave
undefined are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from builders.completion import CompletedCpu, assemble_all
from builders.host_cpu import (
    CODE,
    DATA,
    PAGE,
    READ_ONLY,
    UNMAPPED,
    CpuState,
    HostCpu,
    host_features,
)
from builders.xsave import effective, fill, samples, xsave_area
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, Mnemonic

from pyvmm.completion.table import TABLE

CF, PF, AF, ZF, SF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
STATUS = CF | PF | AF | ZF | SF | OF
RAX, RCX, RDX, RSI = 0, 1, 2, 6

bounded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)


class Case(NamedTuple):
    """Forms of an instruction, whose memory operand is at RSI."""

    forms: tuple[str, ...]
    needs: str = ""
    """The flag in /proc/cpuinfo without which it does not exist."""
    undefined: int = 0
    """Status flags that it leaves undefined."""


def sizes(name: str, *shapes: str, widths: str = "wdq") -> tuple[str, ...]:
    """Forms for operand sizes: in ``shapes``, {a} {b} {c} are registers and {m} is memory."""
    registers = {
        "b": ("cl", "dh", "r9b", "byte"),
        "w": ("cx", "dx", "r9w", "word"),
        "d": ("ecx", "edx", "r9d", "dword"),
        "q": ("rcx", "rdx", "r9", "qword"),
    }
    forms = []
    for width in widths:
        a, b, c, size = registers[width]
        memory = f"{size} ptr [rsi]"
        forms += [f"{name} {shape.format(a=a, b=b, c=c, m=memory)}" for shape in shapes]
    return tuple(forms)


TWO = ("{a}, {b}", "{c}, {a}", "{a}, {m}", "{a}, {a}")
THREE = ("{a}, {b}, {c}", "{c}, {a}, {m}", "{a}, {a}, {b}")
COUNTED = ("{a}, {b}, {c}", "{c}, {m}, {a}", "{a}, {b}, {a}")


def vectors(name: str, *, immediate: str = "") -> Case:
    """The legacy form, the VEX forms and the widths of a two-source vector instruction."""
    return Case(
        (
            f"{name} xmm1, xmm2{immediate}",
            f"{name} xmm9, xmm1{immediate}",
            f"{name} xmm3, xmmword ptr [rsi]{immediate}",
            f"v{name} xmm1, xmm2, xmm12{immediate}",
            f"v{name} ymm1, ymm2, ymm3{immediate}",
            f"v{name} ymm12, ymm1, ymmword ptr [rsi]{immediate}",
        ),
        "avx2",
    )


def shifts(name: str) -> Case:
    return Case(
        (
            f"{name} xmm1, 3",
            f"{name} xmm1, 200",
            f"{name} xmm1, xmm2",
            f"{name} xmm1, xmmword ptr [rsi]",
            f"v{name} ymm1, ymm2, 5",
            f"v{name} ymm1, ymm2, xmm3",
            f"v{name} ymm1, ymm2, xmmword ptr [rsi]",
        ),
        "avx2",
    )


CASES = {
    "popcnt": Case(sizes("popcnt", *TWO), "popcnt"),
    "lzcnt": Case(sizes("lzcnt", *TWO), "abm", PF | AF | SF | OF),
    "tzcnt": Case(sizes("tzcnt", *TWO), "bmi1", PF | AF | SF | OF),
    "movbe": Case(sizes("movbe", "{a}, {m}", "{m}, {a}"), "movbe"),
    "bswap": Case(sizes("bswap", "{a}", "{c}", widths="dq")),
    "movnti": Case(sizes("movnti", "{m}, {a}", "{m}, {c}", widths="dq")),
    "crc32": Case(
        (
            *(f"crc32 ecx, {source}" for source in ("dl", "dh", "r9b", "dx", "edx", "r9d")),
            *(f"crc32 r8d, {size} ptr [rsi]" for size in ("byte", "word", "dword")),
            "crc32 rcx, dl",
            "crc32 rcx, rdx",
            "crc32 r9, qword ptr [rsi]",
        ),
        "sse4_2",
    ),
    "adcx": Case(sizes("adcx", *TWO, widths="dq"), "adx"),
    "adox": Case(sizes("adox", *TWO, widths="dq"), "adx"),
    "andn": Case(sizes("andn", *THREE, widths="dq"), "bmi1", PF | AF),
    "bextr": Case(sizes("bextr", *COUNTED, widths="dq"), "bmi1", PF | AF | SF),
    "blsi": Case(sizes("blsi", *TWO, widths="dq"), "bmi1", PF | AF),
    "blsmsk": Case(sizes("blsmsk", *TWO, widths="dq"), "bmi1", PF | AF),
    "blsr": Case(sizes("blsr", *TWO, widths="dq"), "bmi1", PF | AF),
    "bzhi": Case(sizes("bzhi", *COUNTED, widths="dq"), "bmi2", PF | AF),
    "mulx": Case(sizes("mulx", *THREE, "{a}, {a}, {m}", widths="dq"), "bmi2"),
    "pdep": Case(sizes("pdep", *THREE, widths="dq"), "bmi2"),
    "pext": Case(sizes("pext", *THREE, widths="dq"), "bmi2"),
    "rorx": Case(sizes("rorx", "{a}, {b}, 0", "{a}, {b}, 7", "{c}, {m}, 77", widths="dq"), "bmi2"),
    "sarx": Case(sizes("sarx", *COUNTED, widths="dq"), "bmi2"),
    "shlx": Case(sizes("shlx", *COUNTED, widths="dq"), "bmi2"),
    "shrx": Case(sizes("shrx", *COUNTED, widths="dq"), "bmi2"),
    "nothing": Case(
        (
            *("lfence", "mfence", "sfence", "nop", "nop dword ptr [rsi]", "endbr64", "endbr32"),
            *("prefetcht0 [rsi]", "prefetcht1 [rsi]", "prefetcht2 [rsi]", "prefetchnta [rsi]"),
            *("prefetch [rsi]", "prefetchw [rsi]"),
        )
    ),
    "cld": Case(("cld",)),
    "clflush": Case(("clflush [rsi]",)),
    "clflushopt": Case(("clflushopt [rsi]",), "clflushopt"),
    "clwb": Case(("clwb [rsi]",), "clwb"),
    "fs and gs base": Case(
        ("rdgsbase rcx", "rdgsbase r9d", "wrgsbase rdx", "wrgsbase r9d"), "fsgsbase"
    ),
    "undefined": Case(("ud1 ecx, edx", "ud0 ecx, edx")),
    "privileged": Case(("stac", "clac", "xsetbv", "invpcid rcx, [rsi]", "xsaves [rsi]")),
    "xgetbv": Case(("xgetbv",), "xgetbv1"),
    "pxor": vectors("pxor"),
    "pand": vectors("pand"),
    "por": vectors("por"),
    "pandn": vectors("pandn"),
    "xorps": vectors("xorps"),
    "xorpd": vectors("xorpd"),
    "andps": vectors("andps"),
    "andpd": vectors("andpd"),
    "orps": vectors("orps"),
    "orpd": vectors("orpd"),
    "andnps": vectors("andnps"),
    "andnpd": vectors("andnpd"),
    **{name: vectors(name) for name in ("paddb", "paddw", "paddd", "paddq")},
    **{name: vectors(name) for name in ("psubb", "psubw", "psubd", "psubq")},
    **{name: vectors(name) for name in ("pcmpeqb", "pcmpeqw", "pcmpeqd")},
    **{name: vectors(f"punpckl{name}") for name in ("bw", "wd", "dq", "qdq")},
    **{f"punpckh{name}": vectors(f"punpckh{name}") for name in ("bw", "wd", "dq", "qdq")},
    "pshufb": vectors("pshufb"),
    "palignr": vectors("palignr", immediate=", 5"),
    "palignr by much": vectors("palignr", immediate=", 21"),
    "pshufd": Case(
        (
            "pshufd xmm1, xmm2, 0x39",
            "pshufd xmm1, xmmword ptr [rsi], 0x1b",
            "vpshufd xmm1, xmm2, 0xb1",
            "vpshufd ymm1, ymmword ptr [rsi], 0x93",
        ),
        "avx2",
    ),
    **{name: shifts(name) for name in ("psllw", "pslld", "psllq", "psrlw", "psrld", "psrlq")},
    **{name: shifts(name) for name in ("psraw", "psrad")},
    "pslldq": Case(("pslldq xmm1, 3", "pslldq xmm1, 16", "vpslldq ymm1, ymm2, 7"), "avx2"),
    "psrldq": Case(("psrldq xmm1, 3", "psrldq xmm1, 99", "vpsrldq ymm1, ymm2, 7"), "avx2"),
    "movd, movq": Case(
        (
            *("movd xmm1, edx", "movd r9d, xmm3", "movd xmm1, dword ptr [rsi]"),
            *("movd dword ptr [rsi], xmm2", "movq xmm1, rdx", "movq rcx, xmm9"),
            *("movq xmm1, xmm2", "movq xmm1, qword ptr [rsi]", "movq qword ptr [rsi], xmm1"),
            *("vmovd xmm1, edx", "vmovq xmm1, rdx", "vmovq xmm1, xmm2", "vmovq [rsi], xmm2"),
        ),
        "avx",
    ),
    "moves": Case(
        tuple(
            form
            for name in ("movdqa", "movdqu", "movaps", "movups", "movapd", "movupd")
            for form in (
                *(f"{name} xmm1, xmm2", f"{name} xmm9, [rsi]", f"{name} [rsi], xmm1"),
                *(f"v{name} xmm1, xmm2", f"v{name} ymm1, ymm2"),
                *(f"v{name} ymm1, [rsi]", f"v{name} [rsi], ymm1", f"v{name} [rsi], xmm9"),
            )
        ),
        "avx",
    ),
    "moves around the cache": Case(
        (
            *("movntdq [rsi], xmm1", "movntps [rsi], xmm1", "movntpd [rsi], xmm1"),
            *("vmovntdq [rsi], ymm1", "movntdqa xmm1, [rsi]", "lddqu xmm1, [rsi]"),
            *("vmovntps [rsi], ymm1", "vmovntpd [rsi], xmm1", "vmovntdqa xmm1, [rsi]"),
            *("vlddqu ymm1, [rsi]",),
        ),
        "avx",
    ),
    "lanes": Case(
        (
            *("vextracti128 xmm1, ymm2, 1", "vextracti128 [rsi], ymm2, 0"),
            *("vinserti128 ymm1, ymm2, xmm3, 1", "vinserti128 ymm1, ymm2, [rsi], 0"),
            *("vzeroupper", "vzeroall"),
        ),
        "avx2",
    ),
    "avx-512": Case(
        (
            *("vprord ymm1, ymm2, 7", "vprord ymm20, ymm1, 16", "vprold ymm1, ymm31, 12"),
            *("vprord xmm1, [rsi], 8", "vprord zmm1, zmm2, 24", "vprord ymm1, [rsi + 64], 8"),
            *("vpermi2d ymm1, ymm2, ymm3", "vpermi2d ymm17, ymm2, [rsi]"),
            *("vpermi2d xmm1, xmm2, xmm3", "vpermi2d zmm1, zmm2, zmm19"),
        ),
        "avx512vl",
    ),
    "mxcsr": Case(("ldmxcsr [rsi]", "stmxcsr [rsi]", "vldmxcsr [rsi]", "vstmxcsr [rsi]"), "avx"),
    "x87": Case(("fnclex", "emms", "fwait")),
    "fild": Case(("fild word ptr [rsi]", "fild dword ptr [rsi]", "fild qword ptr [rsi]")),
}

ALL_FORMS = tuple(dict.fromkeys(form for case in CASES.values() for form in case.forms))


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as host:
        yield host


@pytest.fixture(scope="module")
def completed(host: HostCpu) -> CompletedCpu:
    return CompletedCpu(host)


# What the instructions work on.

EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1]
numbers = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from(EDGES), st.integers(0, 80))

# Where a memory operand begins: anywhere in a page, aligned, around a page's end, in the page that
# is not there or the one before it, in the read-only page, or at no address at all.
addresses = st.one_of(
    st.integers(0, 2 * PAGE - 64).map(lambda at: DATA + at),
    st.integers(0, PAGE // 64 - 1).map(lambda at: DATA + 64 * at),
    st.integers(1, 63).map(lambda before: DATA + PAGE - before),
    st.integers(1, 63).map(lambda before: UNMAPPED - before),
    st.integers(0, PAGE // 64 - 1).map(lambda at: READ_ONLY + 64 * at),
    st.sampled_from([UNMAPPED, READ_ONLY + 1, READ_ONLY - 1, 1 << 47, 0x8000_0000_0000_0000]),
)


@st.composite
def states(draw: st.DrawFn, host: HostCpu, *, in_use: int | None = None) -> CpuState:
    gpr = [draw(numbers) for _ in range(16)]
    gpr[RSI] = draw(addresses)
    sample = draw(samples)
    if in_use is None:
        in_use = draw(st.sampled_from([host.xcr0, 7, 3, 2, 0]))
    return CpuState(
        gpr=tuple(gpr),
        rflags=0x202 | draw(st.integers(0, STATUS)) & STATUS,
        gs_base=draw(st.integers(0, (1 << 47) - 1)),
        xsave=xsave_area(host, sample, in_use),
        memory=fill(draw(samples), 3 * PAGE),
    )


# What is compared.


def compare(
    host: HostCpu, completed: CompletedCpu, code: bytes, before: CpuState, undefined: int = 0
) -> None:
    expected, got = host.execute(code, before), completed.execute(code, before)
    assert got.vector == expected.vector
    if expected.vector is not None:
        assert got.error_code == expected.error_code
        if expected.vector == 14:
            assert got.cr2 == expected.cr2
        return
    assert got.state.gpr == expected.state.gpr
    assert (got.state.rflags ^ expected.state.rflags) & ~undefined == 0
    assert got.state.gs_base == expected.state.gs_base
    assert effective(host, got.state.xsave) == effective(host, expected.state.xsave)
    assert got.state.memory == expected.state.memory


def code_of(form: str) -> bytes:
    return assemble_all(ALL_FORMS)[form]


@pytest.mark.parametrize("name", CASES)
@bounded
@given(data=st.data())
def test_instruction_does_what_the_processor_does(
    host: HostCpu, completed: CompletedCpu, name: str, data: st.DataObject
) -> None:
    case = CASES[name]
    if case.needs and case.needs not in host_features():
        pytest.skip(f"this processor has no {case.needs}")
    form = data.draw(st.sampled_from(case.forms))
    before = data.draw(states(host))
    compare(host, completed, code_of(form), before, case.undefined)


# The memory operand's address.

ADDRESS_FORMS = (
    *("[rsi]", "[rsi + 8]", "[rsi - 0x80]", "[rsi + rcx]", "[rsi + rcx * 8 + 0x100]"),
    *("[r12]", "[r13 + r14 * 2]", "[rsp + 16]", "[rbp - 8]", "[rbp + rsi * 4]", "[rcx * 4 + 4]"),
    *("[esi + ecx * 2]", "[r9d + 4]", "gs:[rsi]", "gs:[0x10]", f"[rip + {DATA - CODE}]"),
    *(f"[{DATA + 8}]", f"gs:[esi + {DATA}]"),
)
ADDRESSED = tuple(f"popcnt rax, qword ptr {form}" for form in ADDRESS_FORMS)


@bounded
@given(data=st.data())
def test_memory_operand_is_where_the_processor_has_it(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    before = data.draw(states(host, in_use=0))
    near = st.one_of(st.integers(DATA, DATA + PAGE), st.integers(0, 64), addresses, numbers)
    before = before._replace(
        gpr=tuple(data.draw(near) for _ in range(16)),
        gs_base=data.draw(st.one_of(st.integers(0, PAGE), st.integers(DATA, DATA + 2 * PAGE))),
    )
    form = data.draw(st.sampled_from(ADDRESSED))
    compare(host, completed, assemble_all(ADDRESSED)[form], before)


# Instructions that need more of a state than any will do.

COMPARED = ("cmpxchg8b qword ptr [rsi]", "lock cmpxchg8b [rsi]", "cmpxchg16b [rsi]")


@bounded
@given(data=st.data())
def test_compare_and_exchange_does_what_the_processor_does(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(COMPARED))
    before = data.draw(states(host, in_use=0))
    if data.draw(st.booleans()):
        # Memory holds what is expected of it.
        half = 4 if "8b" in form else 8
        expected = before.gpr[RAX].to_bytes(8, "little")[:half]
        expected += before.gpr[RDX].to_bytes(8, "little")[:half]
        before = before._replace(memory=expected * (3 * PAGE // len(expected)))
    compare(host, completed, assemble_all(COMPARED)[form], before)


VERIFIED = ("verr cx", "verw cx", "verr word ptr [rsi]", "verw word ptr [rsi]")


@bounded
@given(data=st.data())
def test_verify_does_what_the_processor_does(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    before = data.draw(states(host, in_use=0))
    # Those of Linux's descriptors that are the same on all machines, in the GDT and not.
    selector = data.draw(st.integers(0, 0x3B).filter(lambda value: not value & 4 or value < 8))
    gpr = list(before.gpr)
    gpr[RCX] = selector
    before = before._replace(
        gpr=tuple(gpr), memory=selector.to_bytes(2, "little") * (3 * PAGE // 2)
    )
    form = data.draw(st.sampled_from(VERIFIED))
    compare(host, completed, assemble_all(VERIFIED)[form], before)


WAITING = ("fwait", "emms", "fild dword ptr [rsi]", "fnclex")


@bounded
@given(data=st.data())
def test_pending_x87_exception_is_told_as_the_processor_tells_it(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    before = data.draw(states(host, in_use=1))
    xsave = bytearray(before.xsave)
    masked, flagged = data.draw(st.integers(0, 0x3F)), data.draw(st.integers(0, 0x3F))
    xsave[0:2] = (0x340 | masked).to_bytes(2, "little")
    xsave[2] = flagged | (0x80 if flagged & ~masked else 0)
    xsave[3] = xsave[3] & 0x7F | (0x80 if flagged & ~masked else 0)
    form = data.draw(st.sampled_from(WAITING))
    if form.startswith("fild") and not masked & 1:
        xsave[4] = 0  # an overflow of the stack that is not masked is not completed
    compare(host, completed, assemble_all(WAITING)[form], before._replace(xsave=bytes(xsave)))


MXCSR_LOADS = ("ldmxcsr [rsi]", "vldmxcsr [rsi]")


@bounded
@given(data=st.data())
def test_mxcsr_takes_what_the_processor_takes(
    host: HostCpu, completed: CompletedCpu, data: st.DataObject
) -> None:
    before = data.draw(states(host))
    mxcsr = data.draw(st.integers(0, 0x2_FFFF)).to_bytes(4, "little")
    gpr = list(before.gpr)
    gpr[RSI] = DATA
    before = before._replace(gpr=tuple(gpr), memory=mxcsr * (3 * PAGE // 4))
    form = data.draw(st.sampled_from(MXCSR_LOADS))
    compare(host, completed, assemble_all(MXCSR_LOADS)[form], before)


# Those that a process in user mode cannot execute, or not with a result that is known: they are
# tested by what the manuals say, in test_completion_completer.py, and in a guest. test_completion_
# xsave.py compares the XSAVE family.
NOT_COMPARED = (
    *("INT", "INT3", "SLDT", "STR", "RDTSCP", "RDPID", "RDFSBASE", "WRFSBASE"),
    *("RDPKRU", "WRPKRU", "SERIALIZE", "XSAVES64", "XRSTORS", "XRSTORS64"),
    *("XSAVE", "XSAVE64", "XSAVEOPT", "XSAVEOPT64", "XSAVEC", "XSAVEC64", "XRSTOR", "XRSTOR64"),
)


def test_every_instruction_of_the_table_is_compared() -> None:
    compared = set()
    for forms in (ALL_FORMS, ADDRESSED, COMPARED, VERIFIED, WAITING, MXCSR_LOADS):
        for form, code in assemble_all(forms).items():
            insn = Decoder(64, code).decode()
            assert len(insn) == len(code), form
            compared.add(insn.mnemonic)
    assert set(TABLE) - compared == {getattr(Mnemonic, name) for name in NOT_COMPARED}
