"""The guest's hardware, as far as it is ours to play.

Interrupt controllers and the timer are the kernel's (KVM's in-kernel irqchip and PIT). What is
left of a PC stands here, one module for each chip. A device sees offsets, not addresses; raises
its interrupt through an ``IrqLine``; and asks for an end of the run through a callback. None of
them knows about KVM, so all of them are tested without it.
"""
