"""`python scripts/predict.py ...` takes the arguments of `protosphere predict`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
