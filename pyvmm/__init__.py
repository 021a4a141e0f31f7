"""pyvmm: a KVM micro-VMM in Python that boots real kernels."""
