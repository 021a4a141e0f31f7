"""What pyproject.toml cannot say: the compiled parts, and the guests that are built at install."""

from __future__ import annotations

import os
import shutil
import sys

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

_HERE = os.path.dirname(os.path.abspath(__file__))
_KERNELS = os.path.join(_HERE, "kernels")

sys.path.insert(0, _KERNELS)
from build_guest import BuildError, build_embedded, build_init  # noqa: E402


class BuildWithEmbeddedKernel(build_py):  # type: ignore[misc, unused-ignore]
    """Put the guests and the kernels' manifest beside the package's modules."""

    def run(self) -> None:
        super().run()
        root = _HERE if self.editable_mode else self.build_lib
        target = os.path.join(root, "pyvmm", "embedded")
        try:
            build_embedded(target)
            build_init(target)
        except BuildError as error:
            raise SetupError(f"the embedded kernel: {error}") from error
        shutil.copy(os.path.join(_KERNELS, "manifest.toml"), target)


setup(
    cffi_modules=[
        "kvm_bindings/ffi_build.py:ffibuilder",
        "pyvmm/loader/relocate_build.py:ffibuilder",
    ],
    cmdclass={"build_py": BuildWithEmbeddedKernel},
)
