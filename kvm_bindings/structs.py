# ruff: noqa: N801  (the names are the kernel's)
"""The kernel's structs, described for readers and type checkers.

What ``get_regs()`` and its like return is a cffi object: its attributes have these names and these
types, and reading or writing one touches the struct itself. The classes below are never
instantiated; ``kvm_bindings.new("kvm_regs")`` makes a struct. ``_cdef.h`` has the C declarations,
<linux/kvm.h> and the SDM the meanings. Padding and reserved fields are left out. It is long because
the ABI is: a test holds it against the compiled structs.
"""

from __future__ import annotations

from collections.abc import MutableSequence

Bytes = MutableSequence[int]
"""An array of __u8: indexed, sliced, iterated; ``bytes(array)`` copies it."""
Words = MutableSequence[int]
"""An array of wider integers."""


class kvm_regs:
    """General registers."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


class kvm_segment:
    """A segment register with its hidden part (SDM 3A 3.4.3); ``limit`` is in bytes."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741
    g: int
    avl: int
    unusable: int


class kvm_dtable:
    """GDTR or IDTR."""

    base: int
    limit: int


class kvm_sregs:
    """Segments and system registers."""

    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: Words  # the one vector that waits for injection, if any


class kvm_sregs2:
    """Segments and system registers, PAE PDPTRs instead of the interrupt bitmap."""

    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    flags: int  # KVM_SREGS2_FLAGS_PDPTRS_VALID
    pdptrs: Words


class kvm_fpu:
    """x87 and SSE state."""

    fpr: MutableSequence[Bytes]
    fcw: int
    fsw: int
    ftwx: int  # in FXSAVE's form
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: MutableSequence[Bytes]
    mxcsr: int  # ignored by KVM: see VcpuState.get_fpu


class kvm_debugregs:
    """The guest's debug registers."""

    db: Words
    dr6: int
    dr7: int
    flags: int


class kvm_xsave:
    """An XSAVE area; ``extra`` is what lies beyond its first 4096 bytes."""

    region: Words
    extra: Words


class kvm_xcr:
    """One extended control register."""

    xcr: int
    value: int


class kvm_xcrs:
    """The extended control registers: the first ``nr_xcrs`` count."""

    nr_xcrs: int
    flags: int
    xcrs: MutableSequence[kvm_xcr]


class kvm_lapic_state:
    """The local APIC's registers; each element is one ``bytes`` of length 1."""

    regs: MutableSequence[bytes]


class kvm_events_exception:
    """An exception injected or pending."""

    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int


class kvm_events_interrupt:
    """An interrupt injected; ``shadow``: KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI."""

    injected: int
    nr: int
    soft: int
    shadow: int


class kvm_events_nmi:
    """NMI state."""

    injected: int
    pending: int
    masked: int


class kvm_events_smi:
    """SMM state."""

    smm: int
    pending: int
    smm_inside_nmi: int
    latched_init: int


class kvm_events_triple_fault:
    """A triple fault not yet reported."""

    pending: int


class kvm_vcpu_events:
    """What is in delivery or waits for it."""

    exception: kvm_events_exception
    interrupt: kvm_events_interrupt
    nmi: kvm_events_nmi
    sipi_vector: int
    flags: int
    smi: kvm_events_smi
    triple_fault: kvm_events_triple_fault
    exception_has_payload: int
    exception_payload: int


class kvm_translation:
    """The answer of KVM_TRANSLATE."""

    linear_address: int
    physical_address: int
    valid: int
    writeable: int
    usermode: int


class kvm_pic_state:
    """An i8259."""

    last_irr: int
    irr: int
    imr: int
    isr: int
    priority_add: int
    irq_base: int
    read_reg_select: int
    poll: int
    special_mask: int
    init_state: int
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_fully_nested_mode: int
    init4: int
    elcr: int
    elcr_mask: int


class kvm_ioapic_redir_fields:
    """An IOAPIC redirection entry, field by field."""

    vector: int
    delivery_mode: int
    dest_mode: int
    delivery_status: int
    polarity: int
    remote_irr: int
    trig_mode: int
    mask: int
    dest_id: int


class kvm_ioapic_redirtbl:
    """An IOAPIC redirection entry: a union of its 64 bits and its fields."""

    bits: int
    fields: kvm_ioapic_redir_fields


class kvm_ioapic_state:
    """The IOAPIC."""

    base_address: int
    ioregsel: int
    id: int
    irr: int
    redirtbl: MutableSequence[kvm_ioapic_redirtbl]


class kvm_irqchip_chip:
    """A union: which member counts is ``kvm_irqchip.chip_id``'s to say."""

    pic: kvm_pic_state
    ioapic: kvm_ioapic_state


class kvm_irqchip:
    """One of the three interrupt controllers."""

    chip_id: int
    chip: kvm_irqchip_chip


class kvm_pit_channel_state:
    """One channel of the i8254."""

    count: int
    latched_count: int
    count_latched: int
    status_latched: int
    status: int
    read_state: int
    write_state: int
    write_latch: int
    rw_mode: int
    mode: int
    bcd: int
    gate: int
    count_load_time: int


class kvm_pit_state2:
    """The i8254."""

    channels: MutableSequence[kvm_pit_channel_state]
    flags: int


class kvm_clock_data:
    """kvmclock, and with the flags for them the host's real time and TSC at that moment."""

    clock: int
    flags: int
    realtime: int
    host_tsc: int


class kvm_sync_regs:
    """The registers in the run page."""

    regs: kvm_regs
    sregs: kvm_sregs
    events: kvm_vcpu_events


class kvm_run_hw:
    """KVM_EXIT_UNKNOWN."""

    hardware_exit_reason: int


class kvm_run_fail_entry:
    """KVM_EXIT_FAIL_ENTRY."""

    hardware_entry_failure_reason: int
    cpu: int


class kvm_run_ex:
    """KVM_EXIT_EXCEPTION."""

    exception: int
    error_code: int


class kvm_run_io:
    """KVM_EXIT_IO: ``count`` times ``size`` bytes, at ``data_offset`` from the run page's start."""

    direction: int  # KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT
    size: int
    port: int
    count: int
    data_offset: int


class kvm_debug_exit_arch:
    """What stopped the guest."""

    exception: int
    pc: int
    dr6: int
    dr7: int


class kvm_run_debug:
    """KVM_EXIT_DEBUG."""

    arch: kvm_debug_exit_arch


class kvm_run_mmio:
    """KVM_EXIT_MMIO: the first ``len`` of ``data``."""

    phys_addr: int
    data: Bytes
    len: int
    is_write: int


class kvm_run_hypercall:
    """KVM_EXIT_HYPERCALL."""

    nr: int
    args: Words
    ret: int
    longmode: int


class kvm_run_tpr_access:
    """KVM_EXIT_TPR_ACCESS."""

    rip: int
    is_write: int


class kvm_run_internal:
    """KVM_EXIT_INTERNAL_ERROR: the first ``ndata`` of ``data``."""

    suberror: int
    ndata: int
    data: Words


class kvm_run_emulation_failure:
    """KVM_EXIT_INTERNAL_ERROR with suberror KVM_INTERNAL_ERROR_EMULATION: the same bytes."""

    suberror: int
    ndata: int
    flags: int
    insn_size: int
    insn_bytes: Bytes


class kvm_run_system_event:
    """KVM_EXIT_SYSTEM_EVENT: the first ``ndata`` of ``data``."""

    type: int
    ndata: int
    data: Words


class kvm_run_eoi:
    """KVM_EXIT_IOAPIC_EOI."""

    vector: int


class kvm_run_msr:
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR."""

    error: int
    reason: int
    index: int
    data: int


class kvm_run_notify:
    """KVM_EXIT_NOTIFY."""

    flags: int


class kvm_run:
    """The run page. Which part counts is ``exit_reason``'s to say."""

    request_interrupt_window: int
    immediate_exit: int
    exit_reason: int
    ready_for_interrupt_injection: int
    if_flag: int
    flags: int  # KVM_RUN_X86_SMM, KVM_RUN_X86_BUS_LOCK
    cr8: int
    apic_base: int
    hw: kvm_run_hw
    fail_entry: kvm_run_fail_entry
    ex: kvm_run_ex
    io: kvm_run_io
    debug: kvm_run_debug
    mmio: kvm_run_mmio
    hypercall: kvm_run_hypercall
    tpr_access: kvm_run_tpr_access
    internal: kvm_run_internal
    emulation_failure: kvm_run_emulation_failure
    system_event: kvm_run_system_event
    eoi: kvm_run_eoi
    hyperv: kvm_hyperv_exit
    msr: kvm_run_msr
    xen: kvm_xen_exit
    notify: kvm_run_notify
    kvm_valid_regs: int
    kvm_dirty_regs: int
    s: kvm_run_s


class kvm_run_s:
    """Where the sync regs are."""

    regs: kvm_sync_regs


class kvm_coalesced_mmio:
    """One coalesced write: the first ``len`` of ``data``; ``pio``: the address is a port."""

    phys_addr: int
    len: int
    pio: int
    data: Bytes


class kvm_coalesced_mmio_ring:
    """The ring of coalesced writes: the kernel adds at ``last``, a reader takes from ``first``."""

    first: int
    last: int
    coalesced_mmio: MutableSequence[kvm_coalesced_mmio]


class kvm_hyperv_synic:
    """KVM_EXIT_HYPERV_SYNIC."""

    msr: int
    control: int
    evt_page: int
    msg_page: int


class kvm_hyperv_hcall:
    """KVM_EXIT_HYPERV_HCALL."""

    input: int
    result: int
    params: Words


class kvm_hyperv_syndbg:
    """KVM_EXIT_HYPERV_SYNDBG."""

    msr: int
    control: int
    status: int
    send_page: int
    recv_page: int
    pending_page: int


class kvm_hyperv_u:
    """A union: which member counts is ``kvm_hyperv_exit.type``'s to say."""

    synic: kvm_hyperv_synic
    hcall: kvm_hyperv_hcall
    syndbg: kvm_hyperv_syndbg


class kvm_hyperv_exit:
    """KVM_EXIT_HYPERV."""

    type: int
    u: kvm_hyperv_u


class kvm_xen_hcall:
    """KVM_EXIT_XEN_HCALL."""

    longmode: int
    cpl: int
    input: int
    result: int
    params: Words


class kvm_xen_u:
    """A union of one member."""

    hcall: kvm_xen_hcall


class kvm_xen_exit:
    """KVM_EXIT_XEN."""

    type: int
    u: kvm_xen_u
