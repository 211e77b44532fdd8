"""`python scripts/index.py ...` takes the arguments of `protosphere index`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["index", *sys.argv[1:]])
