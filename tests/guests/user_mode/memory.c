/* Pages: those that are there, those that are not, and those that may not be used like that. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "signals.h"
#include "state.h"

#define PAGE 4096
#define PAGES 64

/* SDM 3A 4.7: P, W/R, U/S, I/D */
#define PRESENT 0x1
#define WRITE 0x2
#define USER 0x4
#define FETCH 0x10
#define PAGE_FAULT 14

static char *map(size_t pages, int protection)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *memory = mmap(NULL, pages * PAGE, protection, flags, -1, 0);

	expect_true("mmap", memory != MAP_FAILED);
	return memory;
}

/* The access that `around` makes faults, at `address`, and every register is kept. */
static void expect_fault(void (*around)(void), const char *after, char *address, int code)
{
	catch_signal(SIGSEGV, 0, after);
	prepare((uint64_t)address);
	GPR(wanted, RDI) = (uint64_t)address;
	around();
	compare("page fault");
	expect_signal(SIGSEGV, code);
	expect("si_addr", (uint64_t)address, caught.address);
	expect("exception's vector", PAGE_FAULT, caught.trap);
}

void check_protection(void)
{
	char *page = map(1, PROT_READ | PROT_WRITE);

	page[5] = 1;
	expect("mprotect", 0, mprotect(page, PAGE, PROT_READ));
	expect_fault(around_write, after_write, page + 5, SEGV_ACCERR);
	expect("error code", PRESENT | WRITE | USER, caught.error_code);
	expect("read", 1, page[5]);
	expect("mprotect", 0, mprotect(page, PAGE, PROT_NONE));
	expect_fault(around_read, after_read, page + 5, SEGV_ACCERR);
	expect("error code", 0, caught.error_code & WRITE);
	expect("mprotect", 0, mprotect(page, PAGE, PROT_READ | PROT_WRITE));
	page[5]++;
	expect("written", 2, page[5]);
	munmap(page, PAGE);
}

void check_no_execute(void)
{
	char *page = map(1, PROT_READ | PROT_WRITE);

	page[0] = 1;
	expect_fault(around_jump, after_jump, page, SEGV_ACCERR);
	expect("error code", PRESENT | USER | FETCH, caught.error_code);
	expect("fetched from", (uint64_t)page, caught.rip);
	munmap(page, PAGE);
}

void check_fresh_memory(void)
{
	char *memory = map(PAGES, PROT_READ | PROT_WRITE);
	static const char zeros[PAGE];

	for (int i = 0; i < PAGES; i++) {
		expect("fresh page, difference from zeros", 0, memcmp(memory + i * PAGE, zeros, PAGE));
		memset(memory + i * PAGE, i + 1, PAGE);
	}
	for (int i = 0; i < PAGES; i++)
		expect("page's last byte", i + 1, memory[i * PAGE + PAGE - 1]);
	expect("munmap", 0, munmap(memory + PAGE, PAGE));
	expect_fault(around_read, after_read, memory + PAGE, SEGV_MAPERR);
	expect("error code", USER, caught.error_code);
	expect_fault(around_write, after_write, memory + 2 * PAGE - 1, SEGV_MAPERR);
	expect("error code", USER | WRITE, caught.error_code);
	expect("page below", 1, memory[PAGE - 1]);
	expect("page above", 3, memory[2 * PAGE]);
	munmap(memory, PAGES * PAGE);
}

void check_written_code(void)
{
	/* mov $N, %eax; ret */
	unsigned char code[] = {0xb8, 0, 0, 0, 0, 0xc3};
	char *page = map(1, PROT_READ | PROT_WRITE | PROT_EXEC);
	int (*function)(void) = (int (*)(void))page;

	for (int i = 1; i <= 2; i++) {
		code[1] = i;
		memcpy(page, code, sizeof code);
		expect("function returns", i, function());
	}
	munmap(page, PAGE);
}

#define FRAMES 64
#define FRAME_BYTES (4 * PAGE) /* 1 MiB in all; Linux begins with 132 KiB */

static __attribute__((noinline)) long descend(int frames)
{
	volatile char room[FRAME_BYTES];

	for (size_t i = 0; i < sizeof room; i += PAGE)
		room[i] = frames;
	return (frames > 1 ? descend(frames - 1) : 0) + room[0];
}

void check_stack_growth(void)
{
	expect("sum of all frames' numbers", FRAMES * (FRAMES + 1) / 2, descend(FRAMES));
}
