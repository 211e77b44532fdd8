"""Run a Hub by hand, to try uploads and downloads without an account: `make hub`."""

import argparse
import shlex
import threading
from pathlib import Path

from .server import HubServer


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m tests.hub_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8765, help="0: any that is free")
    parser.add_argument("--folder", type=Path, required=True, help="where it keeps everything")
    arguments = parser.parse_args()

    try:
        server = HubServer(arguments.folder, arguments.port, log_level="info")
    except OSError as error:
        parser.error(f"--port {arguments.port}: {error.strerror}. Choose another, or 0.")
    with server as hub:
        print(f"# A Hub at {hub.url}, in {hub.folder}; Ctrl-C ends it. In another shell:")
        for name, value in hub.variables.items():
            print(f"export {name}={shlex.quote(value)}")
        print("unset HF_HUB_OFFLINE", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
