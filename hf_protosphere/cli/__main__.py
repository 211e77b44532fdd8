"""`python -m hf_protosphere.cli` is `protosphere`."""

from . import main

main()
