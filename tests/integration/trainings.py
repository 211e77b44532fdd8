"""Run by test_processes.py under a launcher: trainings, one after another in the same processes.

    trainings.py '{"trainings": [[flag, value, ...], ...], "stop_at": 5, "fail_at": [1, 5], "kills": [[1, 0.5]]}'

`stop_at` and `fail_at` are steps of the last training. At the first, every process and the launcher
get SIGTERM, as a scheduler sends it; at the other, the process of that rank raises. Each time that the
launcher starts them, the next of `kills` is a rank and the seconds after its first step at which it is killed.
"""

import json
import os
import signal
import sys
import threading
import time

from accelerate import PartialState
from accelerate.utils import DistributedType

from hf_protosphere.cli import main
from hf_protosphere.training import finish as finishing
from hf_protosphere.training import run as training
from hf_protosphere.training import setup as assembly

build_model = assembly.build_model


def in_float64(arguments, images):
    """The model, so that another order of summation is no difference."""
    return build_model(arguments, images).double()


def no_pictures(*_, **__):
    """Most of the time of a short training."""
    return []


def interfere(stop_at, fail_at, kills):
    """Let something happen in `TrainingRun.step`, whose first step is 1."""
    original, rank = training.TrainingRun.step, int(os.environ["RANK"])
    doomed, seconds = ([*kills, [None, 0]])[min(len(kills), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))]
    killer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL])

    def step(self, batches):
        number = self.progress.step + 1
        if rank == doomed and not killer.ident:
            killer.start()
        if [rank, number] == fail_at:
            raise RuntimeError(f"process {rank} fails in step {number}")
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            if rank == 0:
                os.kill(os.getppid(), signal.SIGTERM)
        try:
            return original(self, batches)
        except RuntimeError:
            if fail_at is not None:
                # The other process is gone. Its error alone is there when the launcher looks, which
                # cannot tell the first of two within a second, and then ends this process.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(60)
            raise

    training.TrainingRun.step = step


def run(trainings, stop_at=None, fail_at=None, kills=()):
    os.write(1, b"process %d\n" % os.getpid())  # at once, whole
    assembly.build_model, finishing.draw_run = in_float64, no_pictures
    # The end of a training destroys the process group, which the next one needs.
    PartialState.destroy_process_group = lambda *_, **__: None
    if os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        # Accelerate shards models on GPUs only, though torch and DeepSpeed do on CPUs as well.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    for flags in trainings[:-1]:
        main(["train", *flags])
    interfere(stop_at, fail_at, kills)
    main(["train", *trainings[-1]])


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
