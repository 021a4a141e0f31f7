"""Kernel image bytes -> guest memory: one module for each format.

    image.py       what is this file? Told by its content, explained if it is not a kernel
    load.py        the way in: load_kernel() places a kernel and says how it can be entered
    elf.py         vmlinux: ELF64, its loadable segments and its PVH note
    bzimage.py     bzImage: the setup header, and the rules that it states
    decompress.py  the seven compressions that a bzImage's payload comes in
    unpack.py      what a kernel is wrapped in: compressed_file.py, zboot.py, uki.py (with pe.py)
    arm64.py, riscv64.py   Images for other machines, placed by flat.py; fdt.py, their devicetree
    kaslr.py       moving a kernel to random addresses; its loops are in relocate.c
    initrd.py      the initial RAM disk, as high as the kernel allows
    cmdline.py     the command line; cmdline_builder.py puts one together by the kernel's rules
    files.py       opening what the user named
    rules.py       every rule that an image can break, by the key that its error carries

An image is hostile until shown otherwise: any bytes give a LoadedKernel or a KernelImageError.
"""
