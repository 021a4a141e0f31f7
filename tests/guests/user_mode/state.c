/* States made up of a number, and what became of them: see state.h. */

#include "state.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "check.h"

/* RFLAGS (SDM 1 3.4.3): bit 1 and IF are always set in user mode; the others are the program's. */
#define FLAGS_SET 0x202
#define FLAGS_OURS 0xcd5 /* CF PF AF ZF SF DF OF */

#define FCW_MASKED 0x7f /* SDM 1 8.1.5: every exception masked, and a bit that is always set */
#define MXCSR_MASKED 0x1f80
#define MXCSR_FTZ (1 << 15)

__thread struct state wanted, seen;
int vector_bytes = 16;
volatile uint64_t alarms;

/* SDM 1 14.3 and 15.2: the processor has it, and the kernel has enabled it in XCR0. */
void find_vector_bytes(void)
{
	unsigned int eax, ebx, ecx, edx, xcr0;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx))
		return;
	if (!(ecx & bit_OSXSAVE) || !(ecx & bit_AVX))
		return;
	asm volatile("xgetbv" : "=a"(xcr0), "=d"(edx) : "c"(0));
	if ((xcr0 & 0x6) != 0x6) /* SSE, AVX */
		return;
	vector_bytes = 32;
	if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
		return;
	/* opmask, upper halves of ZMM0 to 15, ZMM16 to 31 */
	if ((ebx & bit_AVX512F) && (ebx & bit_AVX512BW) && (xcr0 & 0xe0) == 0xe0)
		vector_bytes = 64;
}

/* splitmix64: numbers that have nothing to do with each other. */
static uint64_t next(uint64_t *number)
{
	uint64_t z = *number += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void make_up(struct state *state, uint64_t seed)
{
	static const uint16_t precisions[4] = {0, 2, 3, 0}; /* SDM 1 table 8-2: 1 is reserved */
	uint64_t *vectors = (uint64_t *)state->vectors;

	for (size_t i = 0; i < 16; i++)
		state->gpr[i] = next(&seed);
	state->rflags = FLAGS_SET | (next(&seed) & FLAGS_OURS);
	for (size_t i = 0; i < 8; i++)
		state->x87[i] = next(&seed);
	for (size_t i = 0; i < 8; i++)
		state->masks[i] = next(&seed);
	for (size_t i = 0; i < sizeof state->vectors / sizeof *vectors; i++)
		vectors[i] = next(&seed);
	/* rounding and precision */
	state->fcw = FCW_MASKED | precisions[seed >> 32 & 3] << 8 | (seed >> 34 & 3) << 10;
	state->mxcsr = MXCSR_MASKED | (seed >> 36 & 3) << 13 | (seed >> 38 & 1 ? MXCSR_FTZ : 0);
}

void prepare(uint64_t seed)
{
	make_up(&wanted, seed);
	memset(&seen, 0, sizeof seen);
}

void clobber_state(void)
{
	static struct state other;

	make_up(&other, 0);
	load_state(&other);
	store_state(&other);
}

/* Of what differs in one register the first 8 bytes are told. */
static void compare_register(const char *what, const char *letters, size_t number,
			     const void *a, const void *b, size_t size)
{
	const uint64_t *expected = a, *found = b;
	char name[80];

	for (size_t i = 0; i < size / 8; i++) {
		if (expected[i] == found[i])
			continue;
		snprintf(name, sizeof name, "%s: %s%zu from byte %zu", what, letters, number, 8 * i);
		expect(name, expected[i], found[i]);
		return;
	}
}

void compare(const char *what)
{
	static const char *const names[16] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
	};
	const char *letters = vector_bytes == 64 ? "zmm" : vector_bytes == 32 ? "ymm" : "xmm";
	char name[80];

	for (size_t i = 0; i < 16; i++) {
		snprintf(name, sizeof name, "%s: %s", what, names[i]);
		expect(name, wanted.gpr[i], seen.gpr[i]);
	}
	snprintf(name, sizeof name, "%s: rflags", what);
	expect(name, wanted.rflags, seen.rflags);
	snprintf(name, sizeof name, "%s: x87 control word", what);
	expect(name, wanted.fcw, seen.fcw);
	snprintf(name, sizeof name, "%s: mxcsr", what);
	expect(name, wanted.mxcsr, seen.mxcsr);
	for (size_t i = 0; i < 8; i++)
		compare_register(what, "st", i, &wanted.x87[i], &seen.x87[i], 8);
	for (size_t i = 0; i < (vector_bytes == 64 ? 32 : 16); i++)
		compare_register(what, letters, i, wanted.vectors[i], seen.vectors[i],
				 vector_bytes);
	for (size_t i = 0; i < 8 && vector_bytes == 64; i++)
		compare_register(what, "k", i, &wanted.masks[i], &seen.masks[i], 8);
}

long call_keeping_state(uint64_t seed, long number, long a, long b, long c, long d)
{
	prepare(seed);
	GPR(wanted, RAX) = number;
	GPR(wanted, RDI) = a;
	GPR(wanted, RSI) = b;
	GPR(wanted, RDX) = c;
	wanted.gpr[10] = d;
	around_syscall();
	/* SDM 2B SYSCALL: RCX has what RIP was, R11 what RFLAGS was. RAX has the result. */
	GPR(wanted, RCX) = (uint64_t)after_syscall;
	wanted.gpr[11] = wanted.rflags;
	GPR(wanted, RAX) = GPR(seen, RAX);
	compare("system call");
	return GPR(seen, RAX);
}
