/*
 * All the state of the processor that a user's program has: what must outlive a system call, a
 * signal, and a switch to another thread.
 *
 *   prepare(seed)       makes up a state in `wanted`, another one for each seed
 *   around_syscall()    puts the processor into `wanted`, executes SYSCALL, and takes down in `seen`
 *                       what is there then; the other around_...() do so with other instructions
 *   compare(what)       is what was seen what was wanted?
 *
 * `wanted` and `seen` are each thread's own, and found by FS: its base has to be right, too.
 * Left out: segment registers, PKRU, AMX, and AVX-512 on processors without AVX512BW.
 */

#ifndef STATE_H
#define STATE_H

/* struct state, for the assembler. General registers in the order of their encodings. */
#define RAX 0
#define RCX 8
#define RDX 16
#define RBX 24
#define RSP 32
#define RBP 40
#define RSI 48
#define RDI 56
#define RFLAGS 128
#define X87 136
#define MXCSR 200
#define FCW 204
#define MASKS 208
#define VECTORS 320

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

struct state {
	uint64_t gpr[16];
	uint64_t rflags;
	int64_t x87[8]; /* the stack's values: each integer of 64 bits is one of the x87's numbers */
	uint32_t mxcsr;
	uint16_t fcw;
	uint64_t masks[8];
	_Alignas(64) uint8_t vectors[32][64];
};

_Static_assert(offsetof(struct state, rflags) == RFLAGS, "RFLAGS");
_Static_assert(offsetof(struct state, x87) == X87, "X87");
_Static_assert(offsetof(struct state, mxcsr) == MXCSR, "MXCSR");
_Static_assert(offsetof(struct state, fcw) == FCW, "FCW");
_Static_assert(offsetof(struct state, masks) == MASKS, "MASKS");
_Static_assert(offsetof(struct state, vectors) == VECTORS, "VECTORS");

#define GPR(state, offset) ((state).gpr[(offset) / 8])

extern __thread struct state wanted, seen;

/* 16 for SSE, 32 for AVX, 64 for AVX-512: as wide as processor and kernel allow. */
extern int vector_bytes;

void find_vector_bytes(void);
void prepare(uint64_t seed);
void compare(const char *what);

/* Leave nothing in the registers that a compiler's code does not look after. */
void clobber_state(void);

/* A system call by around_syscall(), from a state made of `seed`; what it must keep is compared.
 * Returns what is in RAX: a result, or an error's number, negative. */
long call_keeping_state(uint64_t seed, long number, long a, long b, long c, long d);

/* state.S. Those with a label in them also have at_... and after_... it. */
void load_state(const struct state *state);
void store_state(struct state *state);

#define AROUND(name) \
	void around_##name(void); \
	extern const char at_##name[], after_##name[]
AROUND(syscall);
AROUND(breakpoint); /* int3 */
AROUND(undefined);  /* ud2 */
AROUND(step);       /* nop, with TF */
AROUND(divide);     /* RDX:RAX by RCX */
AROUND(halt);       /* hlt */
AROUND(read);       /* (RDI) to AL */
AROUND(write);      /* AL to (RDI) */
AROUND(jump);       /* to RDI */
AROUND(loop);       /* RCX times, more than none; no flags changed */
AROUND(wait);       /* until a signal interrupts it: RCX is `alarms`; no flags changed */
#undef AROUND

/* Set to 1 by a signal that finds the program in around_wait(). */
extern volatile uint64_t alarms;

#endif /* !__ASSEMBLER__ */
#endif
