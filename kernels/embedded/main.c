/*
 * The embedded kernel: shows what a kernel is given, then talks.
 *
 * It says by which protocol it was entered, what memory and command line it was told of, on which
 * CPU it runs, that timer interrupts arrive; then it echoes the lines that are typed. A few words
 * are commands, mostly different ways to end.
 */

#include "kernel.h"

#define LINE_BYTES      128
#define CTRL(letter)    ((letter) & 0x1f)
#define DELETE          0x7f

static void print_entry(void)
{
        print("entered by: ");
        print(boot_info.protocol);
        print(" at ");
        print_hex(boot_info.table);
        print("\n");
}

static void print_range(u64 base, u64 size)
{
        print("  ");
        print_hex(base);
        print("..");
        print_hex(base + size);
}

static void print_memory(void)
{
        static const char *const types[] = {    /* ACPI 15, "Address Range Types" */
                "unknown", "RAM", "reserved", "ACPI tables", "ACPI NVS", "unusable",
        };
        const u32 type_count = sizeof(types) / sizeof(types[0]);
        u64 ram_bytes = 0;

        print("memory map:\n");
        for (u32 i = 0; i < boot_info.range_count; i++) {
                const struct memory_range *range = &boot_info.ranges[i];

                print_range(range->base, range->size);
                print("  ");
                print(types[range->type < type_count ? range->type : 0]);
                print("\n");
                if (range->type == 1)
                        ram_bytes += range->size;
        }
        print("RAM: ");
        print_number(ram_bytes >> 10);
        print(" KiB\n");
        if (boot_info.initrd_size) {
                print("initrd:\n");
                print_range(boot_info.initrd_base, boot_info.initrd_size);
                print("\n");
        }
}

static void print_cmdline(void)
{
        print("command line: ");
        print(boot_info.cmdline);
        print("\n");
}

static void print_signature(u32 a, u32 b, u32 c)
{
        u32 words[3] = { a, b, c };
        const char *text = (const char *)words;

        for (u32 i = 0; i < sizeof(words) && text[i]; i++)
                print_char(text[i]);
}

static void print_cpu(void)
{
        u32 eax, ebx, ecx, edx;

        cpuid(0, &eax, &ebx, &ecx, &edx);       /* SDM 2A, CPUID: the vendor's name */
        print("CPU: ");
        print_signature(ebx, edx, ecx);
        cpuid(1, &eax, &ebx, &ecx, &edx);
        if (ecx >> 31) {                        /* Documentation/virt/kvm/x86/cpuid.rst */
                cpuid(0x40000000, &eax, &ebx, &ecx, &edx);
                print(", under ");
                print_signature(ebx, ecx, edx);
        }
        print("\n");
}

static void print_ticks(void)
{
        print("timer: ");
        print_number(timer_ticks());
        print(" ticks\n");
}

/* If `line` begins with the word `word`, what follows it; otherwise NULL. */
static const char *after_word(const char *line, const char *word)
{
        while (*word)
                if (*line++ != *word++)
                        return 0;
        if (*line && *line != ' ')
                return 0;
        while (*line == ' ')
                line++;
        return line;
}

static u8 parse_status(const char *text)
{
        u8 status = 0;

        while (*text >= '0' && *text <= '9')
                status = status * 10 + (*text++ - '0');
        return status;
}

static void obey(const char *line)
{
        const char *argument;

        if (after_word(line, "help"))
                print("help cmdline cpu entry mem ticks: show\n"
                      "poweroff, or Ctrl-D on an empty line: power off (ACPI)\n"
                      "reboot: reset (i8042)\n"
                      "exit N: end with status N (debug exit port)\n"
                      "halt: stop the CPU with interrupts off\n"
                      "fault: touch an address that is not mapped\n"
                      "crash: triple fault\n"
                      "anything else is echoed\n");
        else if (after_word(line, "cmdline"))
                print_cmdline();
        else if (after_word(line, "cpu"))
                print_cpu();
        else if (after_word(line, "entry"))
                print_entry();
        else if (after_word(line, "mem"))
                print_memory();
        else if (after_word(line, "ticks"))
                print_ticks();
        else if (after_word(line, "poweroff"))
                power_off();
        else if (after_word(line, "reboot"))
                reset();
        else if ((argument = after_word(line, "exit")))
                guest_exit(parse_status(argument));
        else if (after_word(line, "halt"))
                halt_forever();
        else if (after_word(line, "fault"))
                *(volatile char *)0x100000000 = 0;      /* our page tables end at 4 GiB */
        else if (after_word(line, "crash"))
                triple_fault();
        else if (*line) {
                print(line);
                print("\n");
        }
}

/* Read a line, with the echo and the editing keys that a terminal driver gives. */
static void read_line(char line[LINE_BYTES])
{
        u32 length = 0;

        for (;;) {
                char c = console_getc();

                if (c == CTRL('D') && length == 0) {
                        print("\n");
                        power_off();
                } else if (c == '\r' || c == '\n' || c == CTRL('C')) {
                        print("\n");
                        line[c == CTRL('C') ? 0 : length] = 0;
                        return;
                } else if (c == '\b' || c == DELETE) {
                        if (length) {
                                length--;
                                print("\b \b");
                        }
                } else if ((u8)c >= ' ' && length < LINE_BYTES - 1) {
                        line[length++] = c;
                        print_char(c);
                }
        }
}

void main(u32 protocol, u64 table)
{
        static char line[LINE_BYTES];
        const char *problem;

        console_init();
        print("\npyvmm embedded kernel\n");
        interrupts_init();
        console_listen();
        problem = read_boot_info(protocol, table);
        print_entry();
        if (problem) {
                print(problem);
                print("\n");
                guest_exit(1);
        }
        print_memory();
        print_cmdline();
        print_cpu();

        wait_for_ticks(3);
        print_ticks();

        print("type help for the commands; Ctrl-D powers off\n");
        for (;;) {
                print("> ");
                read_line(line);
                obey(line);
        }
}
