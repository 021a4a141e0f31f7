"""Test what is installed, not what lies here.

``python3 -m pytest`` puts the working directory, this checkout, in front of sys.path; its
kvm_bindings has no compiled part, and would hide the installed package. If the package is installed
elsewhere, the checkout leaves sys.path. If it is not (an editable install), nothing changes.

pytest has loaded our own plugin by now, out of the checkout: what that has imported is forgotten,
so that whatever is imported from now on is the installed one.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

_CHECKOUT = os.path.dirname(os.path.abspath(__file__))
_elsewhere = [entry for entry in sys.path if os.path.abspath(entry) != _CHECKOUT]
if PathFinder.find_spec("kvm_bindings", _elsewhere) is not None:
    sys.path[:] = _elsewhere
    for _name in [name for name in sys.modules if name.partition(".")[0] == "pyvmm"]:
        del sys.modules[_name]
