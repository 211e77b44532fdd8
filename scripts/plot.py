"""`python scripts/plot.py ...` takes the arguments of `protosphere plot`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["plot", *sys.argv[1:]])
