"""`accelerate launch scripts/evaluate.py ...` takes the arguments of `protosphere evaluate`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
