"""`python scripts/publish.py ...` takes the arguments of `protosphere publish`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["publish", *sys.argv[1:]])
