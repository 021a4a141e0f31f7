"""Cap: the optional parts of KVM, and what those that matter most stand for.

Ask with ``kvm.check_extension(Cap.X)``, or the VM, which may differ: 0 means no; else yes, or a
value, where the description names one. Each number comes from <linux/kvm.h>; the descriptions of
all are in Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from enum import IntEnum

from kvm_bindings._abi import lib


class Cap(IntEnum):
    """KVM_CAP_*, those that exist on x86, in the order of their numbers."""

    IRQCHIP = lib.KVM_CAP_IRQCHIP
    """PICs, IOAPIC and local APICs in the kernel."""
    HLT = lib.KVM_CAP_HLT
    MMU_SHADOW_CACHE_CONTROL = lib.KVM_CAP_MMU_SHADOW_CACHE_CONTROL
    USER_MEMORY = lib.KVM_CAP_USER_MEMORY
    """Guest memory is memory of this process."""
    SET_TSS_ADDR = lib.KVM_CAP_SET_TSS_ADDR
    """The TSS pages can be placed."""
    VAPIC = lib.KVM_CAP_VAPIC
    EXT_CPUID = lib.KVM_CAP_EXT_CPUID
    """KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2."""
    CLOCKSOURCE = lib.KVM_CAP_CLOCKSOURCE
    NR_VCPUS = lib.KVM_CAP_NR_VCPUS
    """How many vCPUs are recommended."""
    NR_MEMSLOTS = lib.KVM_CAP_NR_MEMSLOTS
    """How many memory slots a VM may have."""
    PIT = lib.KVM_CAP_PIT
    NOP_IO_DELAY = lib.KVM_CAP_NOP_IO_DELAY
    MP_STATE = lib.KVM_CAP_MP_STATE
    """KVM_GET_MP_STATE."""
    COALESCED_MMIO = lib.KVM_CAP_COALESCED_MMIO
    """Coalesced MMIO; the value is the ring's page in the vCPU's mapping."""
    SYNC_MMU = lib.KVM_CAP_SYNC_MMU
    """Changes to this process's mappings reach the guest."""
    DESTROY_MEMORY_REGION_WORKS = lib.KVM_CAP_DESTROY_MEMORY_REGION_WORKS
    USER_NMI = lib.KVM_CAP_USER_NMI
    """KVM_NMI."""
    SET_GUEST_DEBUG = lib.KVM_CAP_SET_GUEST_DEBUG
    """Single steps and breakpoints from outside."""
    REINJECT_CONTROL = lib.KVM_CAP_REINJECT_CONTROL
    """Whether lost PIT ticks are made up for can be chosen."""
    IRQ_ROUTING = lib.KVM_CAP_IRQ_ROUTING
    """How many GSI routes a VM may have."""
    IRQ_INJECT_STATUS = lib.KVM_CAP_IRQ_INJECT_STATUS
    JOIN_MEMORY_REGIONS_WORKS = lib.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
    MCE = lib.KVM_CAP_MCE
    IRQFD = lib.KVM_CAP_IRQFD
    """Interrupts by eventfd."""
    PIT2 = lib.KVM_CAP_PIT2
    """A PIT in the kernel."""
    SET_BOOT_CPU_ID = lib.KVM_CAP_SET_BOOT_CPU_ID
    """KVM_SET_BOOT_CPU_ID."""
    PIT_STATE2 = lib.KVM_CAP_PIT_STATE2
    """KVM_GET_PIT2 and KVM_SET_PIT2."""
    IOEVENTFD = lib.KVM_CAP_IOEVENTFD
    """Guest writes signal an eventfd."""
    SET_IDENTITY_MAP_ADDR = lib.KVM_CAP_SET_IDENTITY_MAP_ADDR
    """The identity map page can be placed."""
    XEN_HVM = lib.KVM_CAP_XEN_HVM
    ADJUST_CLOCK = lib.KVM_CAP_ADJUST_CLOCK
    """KVM_GET_CLOCK and KVM_SET_CLOCK; the value is the flags that may be set."""
    INTERNAL_ERROR_DATA = lib.KVM_CAP_INTERNAL_ERROR_DATA
    """Internal errors come with data."""
    VCPU_EVENTS = lib.KVM_CAP_VCPU_EVENTS
    """KVM_GET_VCPU_EVENTS."""
    HYPERV = lib.KVM_CAP_HYPERV
    HYPERV_VAPIC = lib.KVM_CAP_HYPERV_VAPIC
    HYPERV_SPIN = lib.KVM_CAP_HYPERV_SPIN
    PCI_SEGMENT = lib.KVM_CAP_PCI_SEGMENT
    INTR_SHADOW = lib.KVM_CAP_INTR_SHADOW
    DEBUGREGS = lib.KVM_CAP_DEBUGREGS
    """KVM_GET_DEBUGREGS."""
    X86_ROBUST_SINGLESTEP = lib.KVM_CAP_X86_ROBUST_SINGLESTEP
    ENABLE_CAP = lib.KVM_CAP_ENABLE_CAP
    """KVM_ENABLE_CAP on a vCPU."""
    XSAVE = lib.KVM_CAP_XSAVE
    """KVM_GET_XSAVE."""
    XCRS = lib.KVM_CAP_XCRS
    """KVM_GET_XCRS."""
    ASYNC_PF = lib.KVM_CAP_ASYNC_PF
    TSC_CONTROL = lib.KVM_CAP_TSC_CONTROL
    """A guest TSC faster or slower than the host's."""
    GET_TSC_KHZ = lib.KVM_CAP_GET_TSC_KHZ
    """KVM_GET_TSC_KHZ."""
    MAX_VCPUS = lib.KVM_CAP_MAX_VCPUS
    """How many vCPUs a VM may have."""
    TSC_DEADLINE_TIMER = lib.KVM_CAP_TSC_DEADLINE_TIMER
    """The local APIC's TSC deadline mode."""
    SYNC_REGS = lib.KVM_CAP_SYNC_REGS
    """Which registers the run page can hold (KVM_SYNC_X86_...)."""
    KVMCLOCK_CTRL = lib.KVM_CAP_KVMCLOCK_CTRL
    """KVM_KVMCLOCK_CTRL."""
    SIGNAL_MSI = lib.KVM_CAP_SIGNAL_MSI
    """Message-signalled interrupts."""
    READONLY_MEM = lib.KVM_CAP_READONLY_MEM
    """Slots that the guest cannot write: its writes are MMIO exits."""
    IRQFD_RESAMPLE = lib.KVM_CAP_IRQFD_RESAMPLE
    """Level-triggered interrupts by eventfd."""
    DEVICE_CTRL = lib.KVM_CAP_DEVICE_CTRL
    """KVM_CREATE_DEVICE."""
    EXT_EMUL_CPUID = lib.KVM_CAP_EXT_EMUL_CPUID
    """KVM_GET_EMULATED_CPUID."""
    HYPERV_TIME = lib.KVM_CAP_HYPERV_TIME
    IOAPIC_POLARITY_IGNORED = lib.KVM_CAP_IOAPIC_POLARITY_IGNORED
    ENABLE_CAP_VM = lib.KVM_CAP_ENABLE_CAP_VM
    """KVM_ENABLE_CAP on a VM."""
    IOEVENTFD_NO_LENGTH = lib.KVM_CAP_IOEVENTFD_NO_LENGTH
    VM_ATTRIBUTES = lib.KVM_CAP_VM_ATTRIBUTES
    CHECK_EXTENSION_VM = lib.KVM_CAP_CHECK_EXTENSION_VM
    """KVM_CHECK_EXTENSION on a VM."""
    DISABLE_QUIRKS = lib.KVM_CAP_DISABLE_QUIRKS
    X86_SMM = lib.KVM_CAP_X86_SMM
    """System management mode."""
    MULTI_ADDRESS_SPACE = lib.KVM_CAP_MULTI_ADDRESS_SPACE
    SPLIT_IRQCHIP = lib.KVM_CAP_SPLIT_IRQCHIP
    """Local APICs in the kernel, PICs and IOAPIC in userspace."""
    IOEVENTFD_ANY_LENGTH = lib.KVM_CAP_IOEVENTFD_ANY_LENGTH
    """ioeventfd with length 0: writes of any size."""
    HYPERV_SYNIC = lib.KVM_CAP_HYPERV_SYNIC
    VCPU_ATTRIBUTES = lib.KVM_CAP_VCPU_ATTRIBUTES
    MAX_VCPU_ID = lib.KVM_CAP_MAX_VCPU_ID
    """One more than the highest vCPU id."""
    X2APIC_API = lib.KVM_CAP_X2APIC_API
    """APIC ids above 255."""
    MSI_DEVID = lib.KVM_CAP_MSI_DEVID
    IMMEDIATE_EXIT = lib.KVM_CAP_IMMEDIATE_EXIT
    """run_page.immediate_exit."""
    X86_DISABLE_EXITS = lib.KVM_CAP_X86_DISABLE_EXITS
    """Which exits can be given up (KVM_X86_DISABLE_EXITS_...)."""
    HYPERV_SYNIC2 = lib.KVM_CAP_HYPERV_SYNIC2
    HYPERV_VP_INDEX = lib.KVM_CAP_HYPERV_VP_INDEX
    GET_MSR_FEATURES = lib.KVM_CAP_GET_MSR_FEATURES
    """get_feature_msrs."""
    HYPERV_EVENTFD = lib.KVM_CAP_HYPERV_EVENTFD
    HYPERV_TLBFLUSH = lib.KVM_CAP_HYPERV_TLBFLUSH
    NESTED_STATE = lib.KVM_CAP_NESTED_STATE
    MSR_PLATFORM_INFO = lib.KVM_CAP_MSR_PLATFORM_INFO
    HYPERV_SEND_IPI = lib.KVM_CAP_HYPERV_SEND_IPI
    COALESCED_PIO = lib.KVM_CAP_COALESCED_PIO
    """Coalesced port writes."""
    HYPERV_ENLIGHTENED_VMCS = lib.KVM_CAP_HYPERV_ENLIGHTENED_VMCS
    EXCEPTION_PAYLOAD = lib.KVM_CAP_EXCEPTION_PAYLOAD
    HYPERV_CPUID = lib.KVM_CAP_HYPERV_CPUID
    MANUAL_DIRTY_LOG_PROTECT2 = lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
    """KVM_CLEAR_DIRTY_LOG; the value is the flags that may be enabled."""
    PMU_EVENT_FILTER = lib.KVM_CAP_PMU_EVENT_FILTER
    HYPERV_DIRECT_TLBFLUSH = lib.KVM_CAP_HYPERV_DIRECT_TLBFLUSH
    HALT_POLL = lib.KVM_CAP_HALT_POLL
    ASYNC_PF_INT = lib.KVM_CAP_ASYNC_PF_INT
    LAST_CPU = lib.KVM_CAP_LAST_CPU
    SMALLER_MAXPHYADDR = lib.KVM_CAP_SMALLER_MAXPHYADDR
    STEAL_TIME = lib.KVM_CAP_STEAL_TIME
    X86_USER_SPACE_MSR = lib.KVM_CAP_X86_USER_SPACE_MSR
    """MSR accesses that KVM refuses can exit (KVM_MSR_EXIT_REASON_...)."""
    X86_MSR_FILTER = lib.KVM_CAP_X86_MSR_FILTER
    """KVM_X86_SET_MSR_FILTER."""
    ENFORCE_PV_FEATURE_CPUID = lib.KVM_CAP_ENFORCE_PV_FEATURE_CPUID
    SYS_HYPERV_CPUID = lib.KVM_CAP_SYS_HYPERV_CPUID
    DIRTY_LOG_RING = lib.KVM_CAP_DIRTY_LOG_RING
    """Dirty pages as a ring; the value is its largest size in bytes."""
    X86_BUS_LOCK_EXIT = lib.KVM_CAP_X86_BUS_LOCK_EXIT
    """Exits for bus locks."""
    SET_GUEST_DEBUG2 = lib.KVM_CAP_SET_GUEST_DEBUG2
    SGX_ATTRIBUTE = lib.KVM_CAP_SGX_ATTRIBUTE
    VM_COPY_ENC_CONTEXT_FROM = lib.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM
    PTP_KVM = lib.KVM_CAP_PTP_KVM
    HYPERV_ENFORCE_CPUID = lib.KVM_CAP_HYPERV_ENFORCE_CPUID
    SREGS2 = lib.KVM_CAP_SREGS2
    """KVM_GET_SREGS2 and KVM_SET_SREGS2."""
    EXIT_HYPERCALL = lib.KVM_CAP_EXIT_HYPERCALL
    BINARY_STATS_FD = lib.KVM_CAP_BINARY_STATS_FD
    """get_stats."""
    EXIT_ON_EMULATION_FAILURE = lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE
    """Every emulation failure exits, instead of #UD in the guest."""
    VM_MOVE_ENC_CONTEXT_FROM = lib.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM
    VM_GPA_BITS = lib.KVM_CAP_VM_GPA_BITS
    XSAVE2 = lib.KVM_CAP_XSAVE2
    """The size of the XSAVE area in bytes; of a VM, not the system."""
    SYS_ATTRIBUTES = lib.KVM_CAP_SYS_ATTRIBUTES
    PMU_CAPABILITY = lib.KVM_CAP_PMU_CAPABILITY
    """The guest's PMU can be switched off (KVM_PMU_CAP_DISABLE)."""
    DISABLE_QUIRKS2 = lib.KVM_CAP_DISABLE_QUIRKS2
    """Which old behaviours can be given up (KVM_X86_QUIRK_...)."""
    VM_TSC_CONTROL = lib.KVM_CAP_VM_TSC_CONTROL
    SYSTEM_EVENT_DATA = lib.KVM_CAP_SYSTEM_EVENT_DATA
    X86_TRIPLE_FAULT_EVENT = lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT
    X86_NOTIFY_VMEXIT = lib.KVM_CAP_X86_NOTIFY_VMEXIT
    """Exits for a guest that holds up interrupts."""
    VM_DISABLE_NX_HUGE_PAGES = lib.KVM_CAP_VM_DISABLE_NX_HUGE_PAGES
    DIRTY_LOG_RING_ACQ_REL = lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL
    DIRTY_LOG_RING_WITH_BITMAP = lib.KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
    PMU_EVENT_MASKED_EVENTS = lib.KVM_CAP_PMU_EVENT_MASKED_EVENTS
    USER_MEMORY2 = lib.KVM_CAP_USER_MEMORY2
    MEMORY_FAULT_INFO = lib.KVM_CAP_MEMORY_FAULT_INFO
    """Memory faults exit with the address."""
    MEMORY_ATTRIBUTES = lib.KVM_CAP_MEMORY_ATTRIBUTES
    GUEST_MEMFD = lib.KVM_CAP_GUEST_MEMFD
    """Guest memory that this process cannot map."""
    VM_TYPES = lib.KVM_CAP_VM_TYPES
    """A bit for each type that create_vm takes."""
    PRE_FAULT_MEMORY = lib.KVM_CAP_PRE_FAULT_MEMORY
    X86_APIC_BUS_CYCLES_NS = lib.KVM_CAP_X86_APIC_BUS_CYCLES_NS
    X86_GUEST_MODE = lib.KVM_CAP_X86_GUEST_MODE
