/* What the parts of the kernel offer to each other. */

#pragma once

#include "cpu.h"
#include "protocols.h"

/* console.c. Output is collected, and sent when a line ends or the reader is about to wait. */
void console_init(void);                /* for output; for input too, once we listen */
void console_listen(void);
void console_interrupt(void);           /* IRQ 4: something was typed */
char console_getc(void);                /* sleeps until there is a character */
void print(const char *text);
void print_char(char c);
void print_hex(u64 value);              /* 0x and 16 digits: columns line up */
void print_number(u64 value);
void flush(void);

/* interrupts.c */
void interrupts_init(void);
u64 timer_ticks(void);                  /* at 100 Hz */
void wait_for_ticks(u64 count);
_Noreturn void triple_fault(void);

/* power.c */
_Noreturn void power_off(void);
_Noreturn void reset(void);
_Noreturn void guest_exit(u8 status);

/* boot_info.c: what the loader told us, by whichever protocol */
struct memory_range {
        u64 base;
        u64 size;
        u32 type;                       /* an ACPI address range type: 1 is RAM */
};

struct boot_info {
        const char *protocol;
        u64 table;                      /* where the protocol's own table is */
        const char *cmdline;
        u64 initrd_base;
        u64 initrd_size;
        u32 range_count;
        struct memory_range ranges[128];        /* as many as boot_params can hold */
};

extern struct boot_info boot_info;

const char *read_boot_info(u32 protocol, u64 table);    /* NULL, or what is wrong */
