"""`accelerate launch scripts/train.py ...` takes the arguments of `protosphere train`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
