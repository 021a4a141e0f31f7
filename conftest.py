"""Test what is installed, not what lies here.

``python3 -m pytest`` puts the working directory, this checkout, in front of sys.path; its
kvm_bindings has no compiled part, and would hide the installed package. If the package is installed
elsewhere, the checkout leaves sys.path. If it is not (an editable install), nothing changes.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

_CHECKOUT = os.path.dirname(os.path.abspath(__file__))
_elsewhere = [entry for entry in sys.path if os.path.abspath(entry) != _CHECKOUT]
if PathFinder.find_spec("kvm_bindings", _elsewhere) is not None:
    sys.path[:] = _elsewhere
