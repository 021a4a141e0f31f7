"""``pyvmm explain``: what a kernel image is, and what pyvmm would do with it, for people.

    report.py      explain(): image and MachineConfig -> Report, the one way in
    model.py       Report -> Section -> Field or Table: plain values, made once, rendered thrice
    fields.py      a format's table of fields, read from any bytes however damaged

    image.py       the layers of a file, each told by the module for it:
    elf.py         ELF: header, program headers            notes.py   its notes, by owner
    bzimage.py     setup_header, kernel_info               pe.py      headers of EFI programs
    multiboot.py   the Multiboot header                    flat.py    arm64's and riscv64's Images
    wrapping.py    compressed files, EFI zboot, UKIs       fdt.py     device trees
    linux.py       version string, configuration           relocations.py   what --kaslr changes

    boot.py        what is loaded where, and how the guest is entered
    entry_state.py the registers, GDT and page tables      handover.py   what the kernel is told
    memory_map.py  guest memory as a list of spans, to be drawn

    text.py        for terminals    as_json.py  for programs    as_html.py  for browsers

A describer is a generator of sections: pure, of bytes. It reads by its own table of fields, as the
loader's parsers refuse a damaged header before any of it could be shown; what is amiss is then said
by the error that loading for real gives, and by the rule that it names.
"""
