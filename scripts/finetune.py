"""`accelerate launch scripts/finetune.py ...` takes the arguments of `protosphere finetune`."""

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from hf_protosphere.cli import main

if __name__ == "__main__":
    record(main)(["finetune", *sys.argv[1:]])
