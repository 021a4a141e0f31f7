/* Signals that are caught, and what is known of the last one. */

#ifndef SIGNALS_H
#define SIGNALS_H

#include <signal.h>
#include <stdint.h>

struct caught {
	int count, number, code;
	uint64_t address, rip, trap, error_code;
	long sender;
};

extern volatile struct caught caught;

/* Catch `number` from now on; forget what was caught. Its handler leaves nothing in any register,
 * and returns to `go_on`, or if that is NULL to where it came from. */
void catch_signal(int number, int flags, const char *go_on);

/* Since then: one signal, of this kind. */
void expect_signal(int number, int code);

#endif
