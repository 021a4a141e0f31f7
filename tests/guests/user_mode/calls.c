/* System calls. */

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "state.h"

#define CALLS 5000

void check_getppid(void)
{
	long parent = getppid();

	for (int i = 0; i < CALLS; i++)
		expect("getppid", parent, call_keeping_state(i, SYS_getppid, 0, 0, 0, 0));
}

void check_unknown_call(void)
{
	expect("result", -ENOSYS, call_keeping_state(1, 0x7fff, 0, 0, 0, 0));
}
