"""What the ranks of tests/test_launch.py do."""

import json
import os
import signal
import sys
import time

from tasft.errors import UserError
from tasft.train.group import Stopped


def speak(folder, group, looked):
    """Agree on a number, and say who it was that did."""
    told = group.agree(group.rank + 7)
    names = [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]
    (folder / f"{group.rank}.json").write_text(json.dumps([told, group.rank, group.world, names]))
    if group.first:
        looked(3)
        looked(5)
        sys.stdout.write("all is well\n")
        sys.stdout.flush()
        sys.stderr.write("so far\n")


def make_a_mistake(group, looked):
    """Fail together with all others, as a loss that is not finite does."""
    group.first_does(fail)


def fail():
    """The user's mistake."""
    raise UserError("the loss is nan")


def leave_when_told(group, looked):
    """Stop in good order, as a training does."""
    told = []
    signal.signal(signal.SIGUSR2, lambda signum, frame: told.append(signum))
    group.agree(None)
    if group.first:
        looked(0)
    while not told:
        time.sleep(0.02)
    raise Stopped(told[0], 4)


def lose_the_second(group, looked):
    """One rank gets a signal that was for it alone; the other waits as at a meeting, where it would not notice."""
    if not group.first:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)


def wait(folder, group, looked):
    """Never end, and say which process it is that waits."""
    (folder / f"{group.rank}.pid").write_text(str(os.getpid()))
    group.agree(None)
    if group.first:
        looked(0)
    time.sleep(600)
