"""The interleaver: order, medians, paired ratios, and participants that fail without stopping the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import pytest
from bench.participants import Broken, Choosy, Clock, Dying, Hanging, Restless, Slow, Unloadable

from outlay.bench.interleave import Measurements, interleave
from outlay.spread import spread


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_participants_take_turns_at_each_task_and_the_order_shifts_by_round():
    measured = interleave([Clock("a"), Clock("b"), Clock("c")], [1, 2], rounds=2)
    moments = {(n, t, r): v["at"] for (n, t), rounds in measured.values.items() for r, v in enumerate(rounds)}
    order = sorted(moments, key=moments.__getitem__)
    assert [step[1:] for step in order] == [(1, 0)] * 3 + [(2, 0)] * 3 + [(1, 1)] * 3 + [(2, 1)] * 3
    assert [step[0] for step in order] == [*"bca", *"bca", *"cab", *"cab"]


def test_each_participant_has_one_process_for_the_whole_run_and_it_is_gone_afterwards():
    measured = interleave([Clock("a"), Clock("b")], [1, 2], rounds=2)
    pids = {name: facts["process"] for name, facts in measured.facts.items()}
    assert len({os.getpid(), *pids.values()}) == 3
    for (name, _), rounds in measured.values.items():
        assert [values["pid"] for values in rounds] == [pids[name]] * 2
    assert not any(map(is_alive, pids.values()))


def test_the_first_round_warms_up_and_is_not_counted():
    measured = interleave([Clock("a")], [1], rounds=3)
    assert measured.series("a", 1, "speed") == [2, 3, 4]


def test_medians_and_ratios_are_paired_by_round():
    measured = Measurements(
        values={
            ("ours", 1): [{"s": 10.0}, {"s": 40.0}, {"s": 30.0}, None],
            ("peer", 1): [{"s": 5.0}, {"s": 10.0}, {"s": 10.0}, {"s": 1000.0}],
        }
    )
    assert measured.median("ours", 1, "s") == 30
    assert measured.ratio(("ours", 1), ("peer", 1), "s") == (3, 2, 4)
    assert measured.ratio(("ours", 1), ("nobody", 1), "s") is None
    assert measured.ratio(("ours", 1), ("peer", 1), "other") is None


def test_the_spread_of_nothing_is_none():
    assert spread([None, None]) is None
    assert spread([None, 2.0]) == (2, 2, 2)


def test_a_task_goes_only_to_those_that_take_it_with_their_environment():
    measured = interleave([Clock("a"), Choosy("b")], [1, 2], rounds=1)
    assert set(measured.values) == {("a", 1), ("a", 2), ("b", 1)}
    assert [measured.facts[name]["seen"] for name in "ab"] == ["", "set"]


def test_a_participant_that_cannot_load_leaves_its_reason_and_the_others_go_on():
    measured = interleave([Unloadable("bad"), Clock("good")], [1], rounds=2)
    assert measured.failures == {"bad": "not installed: pip install it"}
    assert measured.median("bad", 1, "speed") is None
    assert measured.median("good", 1, "speed") == 2.5


def test_a_participant_that_fails_in_the_middle_keeps_what_it_did_before():
    measured = interleave([Broken("bad"), Clock("good")], [1], rounds=3)
    assert measured.failures == {"bad": "ValueError: no such luck"}
    assert measured.series("bad", 1, "speed") == [2, None, None]
    assert measured.ratio(("good", 1), ("bad", 1), "speed") == (1, 1, 1)


def test_a_participant_that_hangs_is_ended_at_the_limit():
    started = time.monotonic()
    measured = interleave([Hanging("bad"), Clock("good")], [1], rounds=1, task_limit=0.5)
    assert measured.failures == {"bad": "no answer within 0.5 s"}
    assert measured.median("good", 1, "speed") == 2
    assert time.monotonic() - started < 50
    assert not is_alive(measured.facts["bad"]["process"])


def test_a_participant_that_dies_is_reported_with_its_signal():
    measured = interleave([Dying("bad"), Clock("good")], [1], rounds=1)
    assert measured.failures["bad"].startswith("died of SIGABRT")
    assert measured.median("good", 1, "speed") == 2


def test_a_process_that_works_while_it_waits_is_noticed():
    measured = interleave([Restless("restless"), Slow("slow")], [1], rounds=1)
    assert measured.idle["restless"] > 0.1
    assert measured.idle["slow"] < 0.1


def test_a_task_is_measured_inside_its_context():
    events = []

    @contextmanager
    def around(task):
        events.append(("enter", task))
        yield
        events.append(("leave", task))

    interleave([Clock("a")], [1, 2], rounds=1, around=around)
    assert events == [("enter", 1), ("leave", 1), ("enter", 2), ("leave", 2)] * 2


def test_all_processes_are_gone_when_a_run_is_interrupted():
    seen = []

    @contextmanager
    def interrupted(task):
        seen.extend(children())
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        interleave([Clock("a"), Hanging("b")], [1], rounds=1, around=interrupted)
    assert len(seen) == 2
    assert not any(map(is_alive, seen))


def test_a_participant_ends_by_itself_when_its_parent_is_killed(tmp_path):
    script = """
        from bench.participants import Clock
        from outlay.bench.interleave import ParticipantProcess
        worker = ParticipantProcess(Clock("a"))
        print(worker.receive(100)["process"], flush=True)
        input()
    """
    path = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def children():
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, parent, args in rows if int(parent) == os.getpid() and "interleave" in args]
