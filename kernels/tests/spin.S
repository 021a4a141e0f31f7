/* Never ends, never exits to the VMM. */

#include "guest.inc"

1:      jmp     1b
