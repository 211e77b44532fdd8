"""`python scripts/search.py ...` takes the arguments of `protosphere search`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
