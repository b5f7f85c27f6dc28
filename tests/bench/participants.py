"""Participants that do what a test needs of them: answer, fail, hang, die."""

from __future__ import annotations

import os
import sys
import time

from outlay.bench.interleave import Participant


class Clock(Participant):
    """Answers with the time at which it was asked, and with `speed` times the task."""

    def __init__(self, name, speed=1.0):
        self.name, self.speed = name, speed
        self.asked = 0

    def load(self):
        return {"process": os.getpid(), "seen": os.environ.get("OUTLAY_TEST", "")}

    def measure(self, task):
        self.asked += 1
        return {"at": time.monotonic(), "speed": self.speed * task * self.asked, "pid": os.getpid()}


class Choosy(Clock):
    @property
    def environment(self):
        return {"OUTLAY_TEST": "set"}

    def takes(self, task):
        return task == 1


class Unloadable(Clock):
    def load(self):
        from outlay.errors import FailureError

        print("much noise", file=sys.stderr)
        raise FailureError("not installed: pip install it")


class Broken(Clock):
    """Fails at its third task."""

    def measure(self, task):
        if self.asked == 2:
            raise ValueError("no such luck")
        return super().measure(task)


class Hanging(Clock):
    def measure(self, task):
        time.sleep(60)


class Dying(Clock):
    def measure(self, task):
        os.abort()


class Restless(Clock):
    """Uses a core while it waits."""

    def measure(self, task):
        import threading

        threading.Thread(target=spin, daemon=True).start()
        return super().measure(task)


class Slow(Clock):
    def measure(self, task):
        time.sleep(1.2)
        return super().measure(task)


def spin():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        pass
