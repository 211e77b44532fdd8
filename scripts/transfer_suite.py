"""`accelerate launch scripts/transfer_suite.py SUITE.yaml ...` takes the arguments of `protosphere transfer-suite`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["transfer-suite", *sys.argv[1:]])
