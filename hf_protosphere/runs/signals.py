"""Stop on SIGINT (Ctrl-C) or SIGTERM (preemption) with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..errors import TrainingInterrupted


@dataclass
class Stop:
    """Whether SIGINT or SIGTERM has come, and which."""

    signal: int = 0

    def now(self, accelerator: Accelerator) -> bool:
        """Whether this process may stop after any step, without asking the others."""
        return bool(self.signal) and accelerator.num_processes == 1

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; every process must ask at the same step."""
        if accelerator.num_processes > 1:
            self.signal = int(accelerator.gather(torch.tensor(self.signal, device=accelerator.device)[None]).max())
        return bool(self.signal)


@contextmanager
def stop_signals(is_main_process: bool = True) -> Iterator[Stop]:
    """SIGINT or SIGTERM asks for a checkpoint and an end; SIGINT thereafter insists.

    SIGTERM does not: a scheduler sends it to all, and the launcher sends it to every process again."""
    stop, insisting = Stop(), signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        if not stop.signal and is_main_process:
            tqdm.write("Stopping soon, with a checkpoint. Ctrl-C to stop at once.")
        stop.signal = number
        signal.signal(signal.SIGINT, insisting)

    with _handled_by(ask):
        yield stop


@contextmanager
def interruptions(more: str = "") -> Iterator[None]:
    """SIGINT and SIGTERM as KeyboardInterrupt, with their number, at once; at the end the user is
    told by `TrainingInterrupted`, of a command that goes on from there (with `more`)."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    with _handled_by(interrupt, more):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, Any], None], more: str = "") -> Iterator[None]:
    """SIGINT and SIGTERM; nothing in a thread, whose process is somebody else's."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as interruption:
        message = f"stopped; the same command{more} goes on from here."
        raise TrainingInterrupted(message, interruption.args[0]) from None
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_with_launcher(launcher: int, pause: float = 1.0) -> None:
    """When the launcher, the process of that id which started this one, is gone, killed say, be asked to end as by
    SIGTERM; and be ended after as many seconds as a launcher leaves for that."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(pause)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30)))
        os._exit(128 + signal.SIGTERM)  # it waits for one that is gone already

    threading.Thread(target=watch, daemon=True).start()
