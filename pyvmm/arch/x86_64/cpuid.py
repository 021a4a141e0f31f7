"""CPUID: what the host can give, made consistent for one vCPU of this guest.

KVM_GET_SUPPORTED_CPUID describes the host's processor and topology. Passed on as it is, every
vCPU would claim the APIC id of whichever host CPU answered, and a package of the host's size.

The guest's topology is one package of ``cpu_count`` cores with one thread each; the APIC id is
the vCPU's number.

Where KVM emulates the guest's kernel mode, for want of hardware, a hypercall may never return, so
that nothing is offered that would lead a kernel to make one; nor CMPXCHG16B, which KVM's emulator
does not know, and kernels can do without.

Specification: SDM 2A CPUID; AMD APM 3 appendix E for the leaves from 0x8000_0000;
Documentation/virt/kvm/x86/cpuid.rst for 0x4000_0000.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Leaf 1
ECX_VMX = 1 << 5
ECX_CX16 = 1 << 13
ECX_MONITOR = 1 << 3
ECX_TSC_DEADLINE = 1 << 24
ECX_HYPERVISOR = 1 << 31
EDX_HTT = 1 << 28

# Leaf 0x8000_0001
ECX_SVM = 1 << 2
ECX_CMP_LEGACY = 1 << 1
ECX_PERF_CTR_EXT_CORE = 1 << 23
ECX_PERF_CTR_EXT_NB = 1 << 24

# Leaf 0x4000_0001: the bits of EAX that lead Linux to hypercalls (6.12, arch/x86/kernel/kvm.c).
KVM_FEATURE_PV_UNHALT = 1 << 7  # KVM_HC_KICK_CPU
KVM_FEATURE_PV_SEND_IPI = 1 << 11  # KVM_HC_SEND_IPI
KVM_FEATURE_PV_SCHED_YIELD = 1 << 13  # KVM_HC_SCHED_YIELD
KVM_FEATURE_HC_MAP_GPA_RANGE = 1 << 16  # KVM_HC_MAP_GPA_RANGE
# Not among them: kvmclock. The driver of KVM's PTP clock tries KVM_HC_CLOCK_PAIRING wherever
# kvmclock is used; but without kvmclock an emulated kernel fails to measure its TSC.
_LEADS_TO_HYPERCALLS = (
    KVM_FEATURE_PV_UNHALT
    | KVM_FEATURE_PV_SEND_IPI
    | KVM_FEATURE_PV_SCHED_YIELD
    | KVM_FEATURE_HC_MAP_GPA_RANGE
)

# The flag of struct kvm_cpuid_entry2 for leaves whose answer depends on ECX.
SIGNIFICANT_INDEX = 1 << 0

# What hypervisors tell of frequencies, in kHz: EAX the TSC's, EBX the APIC bus's. VMware began it
# (its Knowledge Base article 1009458 and the mail "CPUID usage for interaction between Hypervisors
# and Linux", 2008), others followed. KVM's LAPIC timer counts nanoseconds: APIC_BUS_CYCLE_NS is 1.
_TIMING = 0x4000_0010
_APIC_BUS_KHZ = 1_000_000

_LEVEL_SMT = 1
_LEVEL_CORE = 2


class Leaf(NamedTuple):
    """One answer of CPUID: for EAX = ``function`` and, where it matters, ECX = ``index``."""

    function: int
    index: int  # type: ignore[assignment]
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


# What KVM_GET_SUPPORTED_CPUID gives: the fields of a Leaf.
_Entries = Iterable[tuple[int, int, int, int, int, int, int]]


def offers_virtualization(supported: _Entries) -> bool:
    """Whether guests could have guests of their own: then KVM has hardware under it.

    The other way round it may still have: KVM's modules can be told not to offer it.
    """
    return any(
        (function == 0x0000_0001 and ecx & ECX_VMX) or (function == 0x8000_0001 and ecx & ECX_SVM)
        for function, _, _, _, _, ecx, _ in supported
    )


def guest_leaves(
    supported: _Entries,
    *,
    apic_id: int,
    cpu_count: int,
    tsc_deadline: bool,
    tsc_khz: int = 0,
    emulated: bool = False,
) -> list[Leaf]:
    """The leaves for the vCPU ``apic_id`` of ``cpu_count``.

    ``supported`` is what KVM says the host supports, ``tsc_deadline`` whether KVM's LAPIC timer
    has that mode: it is a capability of its own, not part of the supported leaves. ``tsc_khz`` is
    the frequency of the guest's TSC, 0 if KVM does not know it; ``emulated`` whether KVM emulates
    the guest's kernel mode.
    """
    leaves = []
    for entry in supported:
        leaf = Leaf(*entry)
        match leaf.function:
            case 0x0000_0001:
                leaf = _features(leaf, apic_id, cpu_count, tsc_deadline)
                if emulated:
                    leaf = leaf._replace(ecx=leaf.ecx & ~ECX_CX16)
            case 0x0000_0004 | 0x8000_001D:
                leaf = _caches(leaf, cpu_count)
            case 0x0000_000A | 0x8000_0022:
                # Performance monitoring: without a PMU of its own a guest's watchdog would fault.
                leaf = leaf._replace(eax=0, ebx=0, ecx=0, edx=0)
            case 0x0000_000B | 0x0000_001F:
                continue  # the host's topology; the guest's follows below
            case 0x4000_0000 if tsc_khz:
                leaf = leaf._replace(eax=max(leaf.eax, _TIMING))
            case 0x4000_0001 if emulated:
                leaf = leaf._replace(eax=leaf.eax & ~_LEADS_TO_HYPERCALLS)
            case 0x8000_0001:
                leaf = _extended_features(leaf, cpu_count)
            case 0x8000_0008:
                width = _apic_id_bits(cpu_count)
                leaf = leaf._replace(ecx=width << 12 | (cpu_count - 1))
            case 0x8000_001E:
                leaf = leaf._replace(eax=apic_id, ebx=apic_id & 0xFF, ecx=0)
        leaves.append(leaf)
    if tsc_khz:
        leaves.append(Leaf(_TIMING, 0, 0, tsc_khz, _APIC_BUS_KHZ, 0, 0))
    highest = max((leaf.eax for leaf in leaves if leaf.function == 0), default=0)
    for function in (0x0000_000B, 0x0000_001F):
        if function <= highest:
            leaves += _topology(function, apic_id, cpu_count)
    return leaves


def _apic_id_bits(cpu_count: int) -> int:
    """How many bits of the APIC id tell the package's cores apart."""
    return (cpu_count - 1).bit_length()


def _features(leaf: Leaf, apic_id: int, cpu_count: int, tsc_deadline: bool) -> Leaf:
    # EBX: 31:24 initial APIC id, 23:16 logical processors, 15:8 CLFLUSH line, 7:0 brand.
    ebx = leaf.ebx & 0xFFFF | (cpu_count & 0xFF) << 16 | (apic_id & 0xFF) << 24
    ecx = (leaf.ecx | ECX_HYPERVISOR) & ~(ECX_TSC_DEADLINE | ECX_MONITOR)
    if tsc_deadline:
        ecx |= ECX_TSC_DEADLINE
    edx = leaf.edx | EDX_HTT if cpu_count > 1 else leaf.edx & ~EDX_HTT
    return leaf._replace(ebx=ebx, ecx=ecx, edx=edx)


def _extended_features(leaf: Leaf, cpu_count: int) -> Leaf:
    ecx = leaf.ecx & ~(ECX_PERF_CTR_EXT_CORE | ECX_PERF_CTR_EXT_NB | ECX_CMP_LEGACY)
    if cpu_count > 1:
        ecx |= ECX_CMP_LEGACY
    return leaf._replace(ecx=ecx)


def _caches(leaf: Leaf, cpu_count: int) -> Leaf:
    # EAX: 4:0 type (0 ends the list), 7:5 level, 25:14 sharing - 1, 31:26 cores - 1 (leaf 4 only).
    if leaf.eax & 0x1F == 0:
        return leaf
    level = leaf.eax >> 5 & 0x7
    sharing = cpu_count if level >= 3 else 1
    eax = leaf.eax & 0x3FFF | (sharing - 1) << 14
    if leaf.function == 0x0000_0004:
        eax |= min(cpu_count - 1, 0x3F) << 26
    return leaf._replace(eax=eax)


def _topology(function: int, apic_id: int, cpu_count: int) -> list[Leaf]:
    # EAX: bits to shift to the next level's id; EBX: logical processors at this level;
    # ECX: 15:8 level type, 7:0 index; EDX: the x2APIC id, in every sub-leaf.
    return [
        Leaf(function, 0, SIGNIFICANT_INDEX, 0, 1, _LEVEL_SMT << 8, apic_id),
        Leaf(
            function,
            1,
            SIGNIFICANT_INDEX,
            _apic_id_bits(cpu_count),
            cpu_count,
            _LEVEL_CORE << 8 | 1,
            apic_id,
        ),
        Leaf(function, 2, SIGNIFICANT_INDEX, 0, 0, 2, apic_id),
    ]
