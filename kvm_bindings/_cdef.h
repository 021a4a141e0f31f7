/*
 * The part of <linux/kvm.h> and <asm/kvm.h> (x86-64) that kvm_bindings uses, as cffi reads it.
 *
 * Names, fields and their order are the kernel's. Nothing is trusted: building _abi, the C compiler
 * checks the fields' types against the installed headers, takes every "..." value from them, and
 * notes every size and offset, which cffi compares with its own at the struct's first use (a test
 * does so with all of them). Left out: other architectures, SEV, TDX, SGX, Xen attributes, nested state, MCE.
 * What each call does is in the kernel's Documentation/virt/kvm/api.rst.
 */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef short __s16;
typedef int __s32;
typedef long long __s64;

/* ---- the CPU's state ---- */

struct kvm_regs {
    __u64 rax, rbx, rcx, rdx;
    __u64 rsi, rdi, rsp, rbp;
    __u64 r8, r9, r10, r11;
    __u64 r12, r13, r14, r15;
    __u64 rip, rflags;
};

struct kvm_segment {
    __u64 base;
    __u32 limit;
    __u16 selector;
    __u8 type;
    __u8 present, dpl, db, s, l, g, avl;
    __u8 unusable;
    __u8 padding;
};

struct kvm_dtable {
    __u64 base;
    __u16 limit;
    __u16 padding[3];
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 interrupt_bitmap[4];
};

struct kvm_sregs2 {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 flags;
    __u64 pdptrs[4];
};

struct kvm_fpu {
    __u8 fpr[8][16];
    __u16 fcw;
    __u16 fsw;
    __u8 ftwx;
    __u8 pad1;
    __u16 last_opcode;
    __u64 last_ip;
    __u64 last_dp;
    __u8 xmm[16][16];
    __u32 mxcsr;
    __u32 pad2;
};

struct kvm_msr_entry {
    __u32 index;
    __u32 reserved;
    __u64 data;
};

struct kvm_msrs {
    __u32 nmsrs;
    __u32 pad;
    struct kvm_msr_entry entries[];
};

struct kvm_msr_list {
    __u32 nmsrs;
    __u32 indices[];
};

struct kvm_cpuid_entry2 {
    __u32 function;
    __u32 index;
    __u32 flags;
    __u32 eax;
    __u32 ebx;
    __u32 ecx;
    __u32 edx;
    __u32 padding[3];
};

struct kvm_cpuid2 {
    __u32 nent;
    __u32 padding;
    struct kvm_cpuid_entry2 entries[];
};

struct kvm_lapic_state {
    char regs[...];
};

struct kvm_mp_state {
    __u32 mp_state;
};

struct kvm_vcpu_events {
    struct {
        __u8 injected;
        __u8 nr;
        __u8 has_error_code;
        __u8 pending;
        __u32 error_code;
    } exception;
    struct {
        __u8 injected;
        __u8 nr;
        __u8 soft;
        __u8 shadow;
    } interrupt;
    struct {
        __u8 injected;
        __u8 pending;
        __u8 masked;
        __u8 pad;
    } nmi;
    __u32 sipi_vector;
    __u32 flags;
    struct {
        __u8 smm;
        __u8 pending;
        __u8 smm_inside_nmi;
        __u8 latched_init;
    } smi;
    struct {
        __u8 pending;
    } triple_fault;
    __u8 reserved[26];
    __u8 exception_has_payload;
    __u64 exception_payload;
};

struct kvm_debugregs {
    __u64 db[4];
    __u64 dr6;
    __u64 dr7;
    __u64 flags;
    __u64 reserved[9];
};

struct kvm_xsave {
    __u32 region[1024];
    __u32 extra[];
};

struct kvm_xcr {
    __u32 xcr;
    __u32 reserved;
    __u64 value;
};

struct kvm_xcrs {
    __u32 nr_xcrs;
    __u32 flags;
    struct kvm_xcr xcrs[...];
    __u64 padding[16];
};

struct kvm_guest_debug_arch {
    __u64 debugreg[8];
};

struct kvm_guest_debug {
    __u32 control;
    __u32 pad;
    struct kvm_guest_debug_arch arch;
};

struct kvm_debug_exit_arch {
    __u32 exception;
    __u32 pad;
    __u64 pc;
    __u64 dr6;
    __u64 dr7;
};

struct kvm_translation {
    __u64 linear_address;
    __u64 physical_address;
    __u8 valid;
    __u8 writeable;
    __u8 usermode;
    __u8 pad[5];
};

struct kvm_interrupt {
    __u32 irq;
};

struct kvm_signal_mask {
    __u32 len;
    __u8 sigset[];
};

struct kvm_tpr_access_ctl {
    __u32 enabled;
    __u32 flags;
    __u32 reserved[8];
};

struct kvm_vapic_addr {
    __u64 vapic_addr;
};

/* ---- the VM ---- */

struct kvm_userspace_memory_region {
    __u32 slot;
    __u32 flags;
    __u64 guest_phys_addr;
    __u64 memory_size;
    __u64 userspace_addr;
};

struct kvm_dirty_log {
    __u32 slot;
    __u32 padding1;
    union {
        void *dirty_bitmap;
        __u64 padding2;
    };
};

struct kvm_clear_dirty_log {
    __u32 slot;
    __u32 num_pages;
    __u64 first_page;
    union {
        void *dirty_bitmap;
        __u64 padding2;
    };
};

struct kvm_irq_level {
    union {
        __u32 irq;
        __s32 status;
    };
    __u32 level;
};

struct kvm_pic_state {
    __u8 last_irr;
    __u8 irr;
    __u8 imr;
    __u8 isr;
    __u8 priority_add;
    __u8 irq_base;
    __u8 read_reg_select;
    __u8 poll;
    __u8 special_mask;
    __u8 init_state;
    __u8 auto_eoi;
    __u8 rotate_on_auto_eoi;
    __u8 special_fully_nested_mode;
    __u8 init4;
    __u8 elcr;
    __u8 elcr_mask;
};

struct kvm_ioapic_state {
    __u64 base_address;
    __u32 ioregsel;
    __u32 id;
    __u32 irr;
    __u32 pad;
    union {
        __u64 bits;
        struct {
            __u8 vector;
            __u8 delivery_mode : 3;
            __u8 dest_mode : 1;
            __u8 delivery_status : 1;
            __u8 polarity : 1;
            __u8 remote_irr : 1;
            __u8 trig_mode : 1;
            __u8 mask : 1;
            __u8 reserve : 7;
            __u8 reserved[4];
            __u8 dest_id;
        } fields;
    } redirtbl[24];
};

struct kvm_irqchip {
    __u32 chip_id;
    __u32 pad;
    union {
        char dummy[512];
        struct kvm_pic_state pic;
        struct kvm_ioapic_state ioapic;
    } chip;
};

struct kvm_irq_routing_irqchip {
    __u32 irqchip;
    __u32 pin;
};

struct kvm_irq_routing_msi {
    __u32 address_lo;
    __u32 address_hi;
    __u32 data;
    union {
        __u32 pad;
        __u32 devid;
    };
};

struct kvm_irq_routing_s390_adapter {
    __u64 ind_addr;
    __u64 summary_addr;
    __u64 ind_offset;
    __u32 summary_offset;
    __u32 adapter_id;
};

struct kvm_irq_routing_hv_sint {
    __u32 vcpu;
    __u32 sint;
};

struct kvm_irq_routing_entry {
    __u32 gsi;
    __u32 type;
    __u32 flags;
    __u32 pad;
    union {
        struct kvm_irq_routing_irqchip irqchip;
        struct kvm_irq_routing_msi msi;
        struct kvm_irq_routing_s390_adapter adapter; /* not ours, but it aligns the union */
        struct kvm_irq_routing_hv_sint hv_sint;
        __u32 pad[8];
    } u;
};

struct kvm_irq_routing {
    __u32 nr;
    __u32 flags;
    struct kvm_irq_routing_entry entries[];
};

struct kvm_msi {
    __u32 address_lo;
    __u32 address_hi;
    __u32 data;
    __u32 flags;
    __u32 devid;
    __u8 pad[12];
};

struct kvm_irqfd {
    __u32 fd;
    __u32 gsi;
    __u32 flags;
    __u32 resamplefd;
    __u8 pad[16];
};

struct kvm_ioeventfd {
    __u64 datamatch;
    __u64 addr;
    __u32 len;
    __s32 fd;
    __u32 flags;
    __u8 pad[36];
};

struct kvm_pit_config {
    __u32 flags;
    __u32 pad[15];
};

struct kvm_pit_channel_state {
    __u32 count;
    __u16 latched_count;
    __u8 count_latched;
    __u8 status_latched;
    __u8 status;
    __u8 read_state;
    __u8 write_state;
    __u8 write_latch;
    __u8 rw_mode;
    __u8 mode;
    __u8 bcd;
    __u8 gate;
    __s64 count_load_time;
};

struct kvm_pit_state2 {
    struct kvm_pit_channel_state channels[3];
    __u32 flags;
    __u32 reserved[9];
};

struct kvm_reinject_control {
    __u8 pit_reinject;
    __u8 reserved[31];
};

struct kvm_clock_data {
    __u64 clock;
    __u32 flags;
    __u32 pad0;
    __u64 realtime;
    __u64 host_tsc;
    __u32 pad[4];
};

struct kvm_enable_cap {
    __u32 cap;
    __u32 flags;
    __u64 args[4];
    __u8 pad[64];
};

struct kvm_msr_filter_range {
    __u32 flags;
    __u32 nmsrs;
    __u32 base;
    __u8 *bitmap;
};

struct kvm_msr_filter {
    __u32 flags;
    struct kvm_msr_filter_range ranges[...];
};

struct kvm_create_device {
    __u32 type;
    __u32 fd;
    __u32 flags;
};

/* ---- the run page: what KVM_RUN returned, and what it is given ---- */

struct kvm_hyperv_exit {
    __u32 type;
    __u32 pad1;
    union {
        struct {
            __u32 msr;
            __u32 pad2;
            __u64 control;
            __u64 evt_page;
            __u64 msg_page;
        } synic;
        struct {
            __u64 input;
            __u64 result;
            __u64 params[2];
        } hcall;
        struct {
            __u32 msr;
            __u32 pad2;
            __u64 control;
            __u64 status;
            __u64 send_page;
            __u64 recv_page;
            __u64 pending_page;
        } syndbg;
    } u;
};

struct kvm_xen_exit {
    __u32 type;
    union {
        struct {
            __u32 longmode;
            __u32 cpl;
            __u64 input;
            __u64 result;
            __u64 params[6];
        } hcall;
    } u;
};

struct kvm_sync_regs {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
};

struct kvm_run {
    __u8 request_interrupt_window;
    __u8 immediate_exit;
    __u8 padding1[6];

    __u32 exit_reason;
    __u8 ready_for_interrupt_injection;
    __u8 if_flag;
    __u16 flags;

    __u64 cr8;
    __u64 apic_base;

    union {
        struct {
            __u64 hardware_exit_reason;
        } hw;
        struct {
            __u64 hardware_entry_failure_reason;
            __u32 cpu;
        } fail_entry;
        struct {
            __u32 exception;
            __u32 error_code;
        } ex;
        struct {
            __u8 direction;
            __u8 size;
            __u16 port;
            __u32 count;
            __u64 data_offset;
        } io;
        struct {
            struct kvm_debug_exit_arch arch;
        } debug;
        struct {
            __u64 phys_addr;
            __u8 data[8];
            __u32 len;
            __u8 is_write;
        } mmio;
        struct {
            __u64 nr;
            __u64 args[6];
            __u64 ret;
            __u32 longmode;
        } hypercall;
        struct {
            __u64 rip;
            __u32 is_write;
            __u32 pad;
        } tpr_access;
        struct {
            __u32 suberror;
            __u32 ndata;
            __u64 data[16];
        } internal;
        struct {
            __u32 suberror;
            __u32 ndata;
            __u64 flags;
            __u8 insn_size;
            __u8 insn_bytes[15];
        } emulation_failure;
        struct {
            __u32 type;
            __u32 ndata;
            __u64 data[16]; /* data[0] is what the header also calls flags */
        } system_event;
        struct {
            __u8 vector;
        } eoi;
        struct kvm_hyperv_exit hyperv;
        struct {
            __u8 error;
            __u8 pad[7];
            __u32 reason;
            __u32 index;
            __u64 data;
        } msr;
        struct kvm_xen_exit xen;
        struct {
            __u32 flags;
        } notify;
        char padding[256];
    };

    __u64 kvm_valid_regs;
    __u64 kvm_dirty_regs;
    union {
        struct kvm_sync_regs regs;
        char padding[2048];
    } s;
};

/* ---- coalesced PIO and MMIO ---- */

struct kvm_coalesced_mmio_zone {
    __u64 addr;
    __u32 size;
    union {
        __u32 pad;
        __u32 pio;
    };
};

struct kvm_coalesced_mmio {
    __u64 phys_addr;
    __u32 len;
    union {
        __u32 pad;
        __u32 pio;
    };
    __u8 data[8];
};

struct kvm_coalesced_mmio_ring {
    __u32 first, last;
    struct kvm_coalesced_mmio coalesced_mmio[];
};

/* ---- binary statistics ---- */

struct kvm_stats_header {
    __u32 flags;
    __u32 name_size;
    __u32 num_desc;
    __u32 id_offset;
    __u32 desc_offset;
    __u32 data_offset;
};

struct kvm_stats_desc {
    __u32 flags;
    __s16 exponent;
    __u16 size;
    __u32 offset;
    __u32 bucket_size;
    char name[];
};
