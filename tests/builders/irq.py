"""An interrupt line that remembers what was done to it."""

from __future__ import annotations

import threading


class RecordingIrq:
    """``levels``: every level that the line was driven to. ``edge`` is set by a rising one."""

    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.edge = threading.Event()

    def set(self, level: bool) -> None:
        self.levels.append(level)
        if level:
            self.edge.set()

    @property
    def level(self) -> bool:
        return self.levels[-1] if self.levels else False
