"""`python scripts/add_class.py ...` takes the arguments of `protosphere add-class`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["add-class", *sys.argv[1:]])
