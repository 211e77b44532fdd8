"""A running Hub: its address, its tokens, and what the clients in a test need to know."""

import os
import re
import socket
import threading
from pathlib import Path

import uvicorn
from huggingface_hub import HfApi

from .app import create_app
from .call import Token
from .faults import Cut, Fault, Faults, LoggedRequest

USER, OTHER = "user", "other"
TOKENS = {
    "hf_write": Token(USER, "write"),
    "hf_read": Token(USER, "read"),
    "hf_other": Token(OTHER, "write"),
}


class HubServer:
    """A Hub on 127.0.0.1 while it is entered, in a thread; it keeps everything in `folder`.

    Three tokens exist: `hf_write` and `hf_read` of the user "user", `hf_other` of "other".
    """

    token = "hf_write"
    read_token = "hf_read"
    other_token = "hf_other"

    def __init__(self, folder: Path, port: int = 0, log_level: str = "critical") -> None:
        self.folder = folder.resolve()
        self._faults = Faults(create_app(self.folder, TOKENS))
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen()  # so that nobody has to wait until the thread is ready
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        settings = {"lifespan": "off", "proxy_headers": False, "http": "h11", "ws": "none"}
        config = uvicorn.Config(self._faults, log_level=log_level, timeout_graceful_shutdown=1, **settings)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that send the clients of Hugging Face here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.folder / "home"),  # caches of what other Hubs never had
            "HF_HUB_DISABLE_XET": "1",  # uploads go the LFS way
            "NO_PROXY": "127.0.0.1",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of a process that works with this Hub."""
        offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in offline}
        return {**kept, **self.variables}

    def api(self, token: str | bool | None = None) -> HfApi:
        """The real client; with another token, or none (`False`)."""
        return HfApi(endpoint=self.url, token=self.token if token is None else token)

    def fail(
        self,
        method: str,
        path: str,
        times: int = 1,
        status: int | None = None,
        delay: float = 0,
        cut: Cut | None = None,
    ) -> None:
        """Let the next requests fail whose method and path match these regular expressions."""
        self._faults.faults.append(Fault(method, path, times, status, delay, cut))

    @property
    def requests(self) -> list[LoggedRequest]:
        """All requests so far."""
        return self._faults.requests

    def count(self, method: str, path: str) -> int:
        """How many requests so far match these regular expressions."""
        return sum(
            bool(re.fullmatch(method, request.method) and re.search(path, request.path)) for request in self.requests
        )
