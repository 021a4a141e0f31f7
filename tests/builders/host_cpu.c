/*
 * Executes single instructions on this machine's processor and tells what they did: an oracle for
 * pyvmm/completion. The instructions are the tests' own. host_cpu.py is the other end.
 *
 * Reads requests from stdin and writes replies to stdout, until there are no more. A request has
 * all registers and the data pages; a reply has them as they are after the instruction, or the
 * exception that it raised.
 *
 * The data pages, at DATA:   0 and 1: read and write   2: not mapped   3: read-only
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 0x1000
#define CODE ((uint8_t *)0x10000000)
#define DATA ((uint8_t *)0x20000000)
#define XSAVE_BYTES 4096
#define FEATURE_FSGSBASE (1 << 0) /* CPUID leaf 7, EBX */

struct state {
    uint64_t gpr[16]; /* in the order of encodings: rax rcx rdx rbx rsp rbp rsi rdi r8 ... */
    uint64_t rflags;
    uint64_t gs_base;
    uint8_t xsave[XSAVE_BYTES];
    uint8_t memory[3][PAGE]; /* pages 0, 1 and 3 */
};

struct request {
    uint8_t code[16];
    uint64_t code_bytes;
    struct state before;
};

struct reply {
    int64_t vector; /* -1: none */
    uint64_t error_code;
    uint64_t cr2;
    struct state after;
};

uint64_t registers[16], flags, host_rsp;
uint8_t *code = CODE;
uint8_t area[XSAVE_BYTES] __attribute__((aligned(64)));

void execute(void);
extern char finish[];

/* All registers from memory, the instruction, all registers to memory: MOV leaves flags alone. */
__asm__(".text\n"
        "execute:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rsp, host_rsp(%rip)\n"
        "  mov $-1, %eax; mov $-1, %edx; xrstor area(%rip)\n"
        "  push flags(%rip); popf\n"
        "  mov 0+registers(%rip), %rax; mov 8+registers(%rip), %rcx\n"
        "  mov 16+registers(%rip), %rdx; mov 24+registers(%rip), %rbx\n"
        "  mov 40+registers(%rip), %rbp; mov 48+registers(%rip), %rsi\n"
        "  mov 56+registers(%rip), %rdi; mov 64+registers(%rip), %r8\n"
        "  mov 72+registers(%rip), %r9; mov 80+registers(%rip), %r10\n"
        "  mov 88+registers(%rip), %r11; mov 96+registers(%rip), %r12\n"
        "  mov 104+registers(%rip), %r13; mov 112+registers(%rip), %r14\n"
        "  mov 120+registers(%rip), %r15; mov 32+registers(%rip), %rsp\n"
        "  jmp *code(%rip)\n"
        ".global finish\n"
        "finish:\n"
        "  mov %rax, 0+registers(%rip); mov %rcx, 8+registers(%rip)\n"
        "  mov %rdx, 16+registers(%rip); mov %rbx, 24+registers(%rip)\n"
        "  mov %rsp, 32+registers(%rip)\n"
        "  mov %rbp, 40+registers(%rip); mov %rsi, 48+registers(%rip)\n"
        "  mov %rdi, 56+registers(%rip); mov %r8, 64+registers(%rip)\n"
        "  mov %r9, 72+registers(%rip); mov %r10, 80+registers(%rip)\n"
        "  mov %r11, 88+registers(%rip); mov %r12, 96+registers(%rip)\n"
        "  mov %r13, 104+registers(%rip); mov %r14, 112+registers(%rip)\n"
        "  mov %r15, 120+registers(%rip)\n"
        "  mov host_rsp(%rip), %rsp\n"
        "  pushf; pop flags(%rip); cld\n"
        "  mov $-1, %eax; mov $-1, %edx; xsave area(%rip)\n"
        "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n");

static sigjmp_buf after_exception;
static struct reply reply;

static void on_exception(int number, siginfo_t *info, void *context)
{
    greg_t *gregs = ((ucontext_t *)context)->uc_mcontext.gregs;

    (void)number, (void)info;
    reply.vector = gregs[REG_TRAPNO];
    reply.error_code = gregs[REG_ERR];
    reply.cr2 = gregs[REG_CR2];
    siglongjmp(after_exception, 1);
}

static int has_fsgsbase(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & FEATURE_FSGSBASE;
}

/* XCR0, then offset, size and ECX of CPUID leaf 0xd's sub-leaves 2 to 62; zeros: not there. */
static void tell_components(void)
{
    uint64_t told[62][3] = { { 0 } };
    unsigned a, d;

    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    told[0][0] = (uint64_t)d << 32 | a;
    for (int number = 2; number < 63; number++) {
        unsigned size, offset, c;

        __cpuid_count(0xd, number, size, offset, c, d);
        if (told[0][0] >> number & 1)
            told[number - 1][0] = offset, told[number - 1][1] = size, told[number - 1][2] = c;
    }
    fwrite(told, sizeof told, 1, stdout);
    fflush(stdout);
}

int main(void)
{
    static struct request request;
    static uint8_t signal_stack[64 * 1024];
    const stack_t stack = { .ss_sp = signal_stack, .ss_size = sizeof signal_stack };
    struct sigaction action = { .sa_sigaction = on_exception,
                                .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
    const uint8_t jump[] = { 0xff, 0x25, 0, 0, 0, 0 }; /* jmp *0(%rip) */
    const int fd = memfd_create("data", 0);
    static int gs; /* static: known after a longjmp */
    char *end = finish;
    uint8_t *alias;

    if (ftruncate(fd, 4 * PAGE))
        return 1;
    alias = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    mmap(DATA, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
    mmap(DATA + 3 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 3 * PAGE);
    mmap(CODE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    gs = has_fsgsbase();
    sigaltstack(&stack, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    tell_components();
    while (fread(&request, sizeof request, 1, stdin) == 1) {
        struct state *before = &request.before;

        memset(&reply, 0, sizeof reply);
        reply.vector = -1;
        memcpy(CODE, request.code, request.code_bytes);
        memcpy(CODE + request.code_bytes, jump, sizeof jump);
        memcpy(CODE + request.code_bytes + sizeof jump, &end, sizeof end);
        memcpy(registers, before->gpr, sizeof registers);
        memcpy(area, before->xsave, sizeof area);
        memcpy(alias, before->memory, 2 * PAGE);
        memcpy(alias + 3 * PAGE, before->memory[2], PAGE);
        /* The pages are there before the instruction is: no exception but those asked for. */
        (void)*(volatile uint8_t *)DATA, (void)*(volatile uint8_t *)(DATA + PAGE);
        (void)*(volatile uint8_t *)(DATA + 3 * PAGE);
        flags = before->rflags;
        if (gs)
            __asm__ volatile("wrgsbase %0" : : "r"(before->gs_base));
        if (sigsetjmp(after_exception, 1) == 0)
            execute();
        if (gs)
            __asm__ volatile("rdgsbase %0" : "=r"(reply.after.gs_base));
        memcpy(reply.after.gpr, registers, sizeof registers);
        reply.after.rflags = flags;
        memcpy(reply.after.xsave, area, sizeof area);
        memcpy(reply.after.memory, alias, 2 * PAGE);
        memcpy(reply.after.memory[2], alias + 3 * PAGE, PAGE);
        fwrite(&reply, sizeof reply, 1, stdout);
        fflush(stdout);
    }
    return 0;
}
