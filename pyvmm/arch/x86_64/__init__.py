"""x86-64: what a vCPU and its tables look like before the first instruction."""
