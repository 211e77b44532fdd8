"""`accelerate launch scripts/calibrate.py ...` takes the arguments of `protosphere calibrate`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["calibrate", *sys.argv[1:]])
