"""A Hub for tests, on this machine: what huggingface_hub's own client, datasets and transformers
ask of the real one is answered from a folder. `python -m tests.hub_server --help` runs it by hand.
"""

from .server import HubServer

__all__ = ["HubServer"]
