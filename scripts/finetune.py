"""`accelerate launch scripts/finetune.py ...` takes the arguments of `protosphere finetune`."""

import sys

from hf_protosphere.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
