"""The ``pyvmm`` command: argv in, exit status out. One module for each subcommand."""
