"""`python scripts/release.py RELEASE.yaml ...` takes the arguments of `protosphere release`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["release", *sys.argv[1:]])
