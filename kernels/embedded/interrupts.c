/*
 * Exceptions, the two PICs, and the timer.
 *
 * The oldest interrupt hardware of the PC is enough for us: two 8259A controllers for the IRQ
 * lines and channel 0 of the 8254 timer on IRQ 0. The local APIC and the IOAPIC stay as the
 * firmware (or the hypervisor) left them: LINT0 passes the PIC's interrupts through to the CPU.
 */

#include "kernel.h"

/* 8259A datasheet: initialization and operation command words. */
#define PIC1_COMMAND    0x20
#define PIC1_DATA       0x21
#define PIC2_COMMAND    0xa0
#define PIC2_DATA       0xa1
#define ICW1_INIT_ICW4  0x11            /* begin initialization, edge triggered, ICW4 follows */
#define ICW4_8086       0x01
#define OCW2_EOI        0x20            /* end of interrupt */

#define IRQ_TIMER       0
#define IRQ_CASCADE     2               /* where the second PIC is connected to the first */
#define IRQ_COM1        4
#define FIRST_IRQ       32              /* the vector of IRQ 0: below it are the exceptions */

/* 8254 datasheet: channel 0, low byte then high byte, mode 2 (rate generator). */
#define PIT_CHANNEL0    0x40
#define PIT_COMMAND     0x43
#define PIT_RATE        0x34
#define PIT_HZ          1193182
#define TICKS_PER_SECOND 100

/* SDM 3A 6.14.1, "64-Bit Mode IDT". */
struct idt_gate {
        u16 offset_low;
        u16 selector;
        u8 ist;
        u8 type;
        u16 offset_middle;
        u32 offset_high;
        u32 reserved;
};
#define INTERRUPT_GATE  0x8e            /* present, ring 0, interrupts off while it is handled */

struct idt_descriptor {
        u16 limit;
        u64 base;
} __attribute__((packed));

/* What vectors.S and the CPU have pushed. */
struct interrupt_frame {
        u64 r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
        u64 vector, error_code;
        u64 rip, cs, rflags, rsp, ss;
};

extern char vector_stubs[VECTOR_COUNT][16];

static struct idt_gate idt[VECTOR_COUNT];
static volatile u64 ticks;

static void load_idt(u64 base, u16 limit)
{
        struct idt_descriptor descriptor = { limit, base };

        asm volatile("lidt %0" : : "m"(descriptor));
}

void interrupts_init(void)
{
        for (int vector = 0; vector < VECTOR_COUNT; vector++) {
                u64 stub = (u64)vector_stubs[vector];

                idt[vector].offset_low = stub;
                idt[vector].offset_middle = stub >> 16;
                idt[vector].offset_high = stub >> 32;
                idt[vector].selector = KERNEL_CS;
                idt[vector].type = INTERRUPT_GATE;
        }
        load_idt((u64)idt, sizeof(idt) - 1);

        outb(PIC1_COMMAND, ICW1_INIT_ICW4);
        outb(PIC1_DATA, FIRST_IRQ);
        outb(PIC1_DATA, 1 << IRQ_CASCADE);
        outb(PIC1_DATA, ICW4_8086);
        outb(PIC2_COMMAND, ICW1_INIT_ICW4);
        outb(PIC2_DATA, FIRST_IRQ + 8);
        outb(PIC2_DATA, IRQ_CASCADE);
        outb(PIC2_DATA, ICW4_8086);
        outb(PIC1_DATA, (u8)~(1 << IRQ_TIMER | 1 << IRQ_COM1));
        outb(PIC2_DATA, 0xff);

        outb(PIT_COMMAND, PIT_RATE);
        outb(PIT_CHANNEL0, (PIT_HZ / TICKS_PER_SECOND) & 0xff);
        outb(PIT_CHANNEL0, (PIT_HZ / TICKS_PER_SECOND) >> 8);

        interrupts_on();
}

#define EXIT_EXCEPTION  0xee            /* our status when an exception was not expected */

static _Noreturn void exception(const struct interrupt_frame *frame)
{
        print("\nexception ");
        print_number(frame->vector);
        print(", error code ");
        print_hex(frame->error_code);
        print("\n  rip ");
        print_hex(frame->rip);
        print("  rsp ");
        print_hex(frame->rsp);
        print("  rflags ");
        print_hex(frame->rflags);
        print("  cr2 ");
        print_hex(read_cr2());
        print("\n");
        guest_exit(EXIT_EXCEPTION);
}

/* Called by vectors.S for every interrupt, with interrupts off. */
void interrupt(const struct interrupt_frame *frame)
{
        switch (frame->vector) {
        case FIRST_IRQ + IRQ_TIMER:
                ticks++;
                break;
        case FIRST_IRQ + IRQ_COM1:
                console_interrupt();
                break;
        case FIRST_IRQ + 7:             /* spurious (8259A datasheet): the line fell again, */
                return;                 /* and nothing is in service that an EOI would end */
        default:
                exception(frame);
        }
        outb(PIC1_COMMAND, OCW2_EOI);
}

u64 timer_ticks(void)
{
        return ticks;
}

void wait_for_ticks(u64 count)
{
        u64 end = ticks + count;

        while (ticks < end) {
                interrupts_off();
                if (ticks < end)
                        interrupts_on_and_wait();
                interrupts_on();
        }
}

/*
 * With an empty IDT the CPU cannot deliver the first exception, nor the double fault that this
 * makes, and gives up: shutdown (SDM 3A 6.15, "Interrupt 8").
 */
_Noreturn void triple_fault(void)
{
        load_idt(0, 0);
        asm volatile("ud2");
        __builtin_unreachable();
}
