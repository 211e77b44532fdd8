"""`accelerate launch scripts/calibrate.py ...` takes the arguments of `protosphere calibrate`."""

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from hf_protosphere.cli import main

if __name__ == "__main__":
    # An error is the launcher's too: its summary tells the first one, of many that follow from it.
    record(main)(["calibrate", *sys.argv[1:]])
