"""`python scripts/export.py ...` takes the arguments of `protosphere export`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
