"""The C compiler as an oracle: what it says of the kernel's own headers."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path


def evaluate(headers: list[str], expressions: list[str]) -> list[int]:
    """The values of C integer ``expressions`` after including ``headers``."""
    source = "#include <stddef.h>\n#include <stdio.h>\n"
    source += "".join(f"#include <{header}>\n" for header in headers)
    body = "".join(f'  printf("%lld\\n", (long long)({expr}));\n' for expr in expressions)
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "evaluate")
        subprocess.run(
            ["gcc", "-x", "c", "-", "-o", program],
            input=f"{source}int main(void) {{\n{body}  return 0;\n}}\n",
            text=True,
            check=True,
        )
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return [int(line) for line in output.split()]
