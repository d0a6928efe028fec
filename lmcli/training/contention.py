"""How busy other processes keep the cores of this one, and how many threads that leaves.

A thread that another process holds up holds up all the others at the end of every operation: with
one hog on two cores, a small model falls to a tenth of its speed with two threads and keeps two
thirds of it with one.
"""

import os
import time

PATIENCE = 2.0  # seconds that are looked at together
GIVE_WAY, COME_BACK = 0.5, 0.15  # cores' worth of others' work


class Contention:
    """Linux only: elsewhere `threads` always answers what is wanted."""

    def __init__(self, wanted: int, now: int) -> None:
        self.wanted, self.now = wanted, now
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._before = self._sample()

    def threads(self) -> int:
        """How many threads to use from here on; asks the kernel every PATIENCE seconds."""
        now = time.monotonic()
        if self.wanted == 1 or not self.cores or now - self._before[0] < PATIENCE:
            return self.now
        before, self._before = self._before, self._sample()
        wall, busy, own = (b - a for a, b in zip(before, self._before, strict=True))
        others = (busy - own) / wall
        free = len(self.cores) - others
        if others > GIVE_WAY and self.now > free + GIVE_WAY:
            self.now = max(1, round(free))
        elif others < COME_BACK:
            self.now = self.wanted
        return self.now

    def _sample(self) -> tuple[float, float, float]:
        """Seconds: the clock, all work on our cores, our own work."""
        busy = 0.0
        try:
            with open("/proc/stat", encoding="ascii") as file:
                for line in file:
                    name, *numbers = line.split()
                    if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in self.cores:
                        user, nice, system, _, _, irq, soft = map(int, numbers[:7])
                        busy += (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            self.cores = set()
        own = os.times()
        return time.monotonic(), busy, own.user + own.system
