/* Instructions that C has no words for. */

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

static inline void outb(u16 port, u8 value)
{
        asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(u16 port, u16 value)
{
        asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
        u8 value;

        asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
        return value;
}

static inline void outsb(u16 port, const void *data, u64 count)
{
        asm volatile("rep outsb" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}

static inline void cpuid(u32 leaf, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx)
{
        asm volatile("cpuid"
                     : "=a"(*eax), "=b"(*ebx), "=c"(*ecx), "=d"(*edx)
                     : "a"(leaf), "c"(0));
}

static inline u64 read_cr2(void)
{
        u64 value;

        asm volatile("mov %%cr2, %0" : "=r"(value));
        return value;
}

static inline void interrupts_off(void)
{
        asm volatile("cli" : : : "memory");
}

static inline void interrupts_on(void)
{
        asm volatile("sti" : : : "memory");
}

/*
 * Sleep until the next interrupt. STI takes effect only after the instruction that follows it,
 * so no interrupt can come between the two and leave us asleep with nothing to wake us
 * (SDM 2B, STI).
 */
static inline void interrupts_on_and_wait(void)
{
        asm volatile("sti; hlt" : : : "memory");
}

static inline _Noreturn void halt_forever(void)
{
        for (;;)
                asm volatile("cli; hlt" : : : "memory");
}
