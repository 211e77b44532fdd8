"""`python scripts/transfer_suite.py SUITE.yaml ...` takes the arguments of `protosphere
transfer-suite`."""

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from hf_protosphere.cli import main

if __name__ == "__main__":
    record(main)(["transfer-suite", *sys.argv[1:]])
