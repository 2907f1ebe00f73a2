"""One rank of a run that tasft.launch has dealt to several processes of this machine."""

import json
import logging
import os
import pickle
import socket
import sys
import threading
import time
from pathlib import Path

from tasft.config import mistake
from tasft.launch import LOST, MISTAKE, TASK
from tasft.result.rows import write_atomically
from tasft.train.group import Lost, Stopped, joined

log = logging.getLogger("tasft")


def main() -> int:
    """Do the task in the folder on the command line as the rank that the environment says; the exit code."""
    scratch, device, logs, channel = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    parent = socket.socket(fileno=channel)
    threading.Thread(target=_end_with, args=(int(sys.argv[5]),), daemon=True).start()
    group = joined()
    handlers: list[logging.Handler] = [logging.StreamHandler()]  # of the others it is their log
    if group.first:
        handlers.append(logging.FileHandler(logs / "rank0.log"))
    logging.basicConfig(level=logging.INFO if group.first else logging.WARNING, format="%(message)s", handlers=handlers)

    def looked(step: int) -> None:
        parent.sendall(str(step).encode())
        if not parent.recv(2):  # closed: this is to end
            raise KeyboardInterrupt

    try:
        group.meet(device, f"file://{scratch / 'meeting'}")
        pickle.loads((scratch / TASK).read_bytes())(group, looked)
    except KeyboardInterrupt:
        return 130
    except Stopped as stop:
        return 128 + stop.signum
    except Lost as error:
        handlers[-1].handle(log.makeRecord("tasft", logging.ERROR, __file__, 0, str(error), (), None))
        return LOST
    except Exception as error:
        sentence = mistake(error)
        if sentence is None:
            log.exception("rank %d of %d has failed", group.rank, group.world)
        else:
            write_atomically(scratch / MISTAKE, json.dumps({"sentence": sentence}))
        return 1
    return 0


def _end_with(parent: int) -> None:
    """End this process when the one that has started it is gone: nobody keeps others out of its files any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # at once: a rank that is alone waits for the others in destructors
