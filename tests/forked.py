"""Fresh Python processes that need not import torch and transformers again.

Most of what a short process costs are its imports. A server makes them once, without this package, and forks every
process that `run` or multiprocessing's "forkserver" starts. Each has its own memory and ends by itself, as any other.
But what libraries read from the environment when they are imported (HF_HOME, HF_HUB_OFFLINE) is the server's: a test
of that, or of what an import costs or brings, starts `sys.executable`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .hub_server import HubServer

IMPORTED = [
    "accelerate", "datasets", "hypothesis", "peft", "pytest", "safetensors.torch", "sklearn.datasets", "timm",
    "torch._dynamo", "torch.distributed.run", "torchmetrics", "torchvision.transforms.v2",
    "transformers.models.auto.modeling_auto", "transformers.pipelines", "transformers.trainer",
]  # fmt: skip
# Its processes are forks of it. The number of processes and the absolute path of a script follow.
TORCHRUN = (
    "-m", "torch.distributed.run", "--start_method", "fork", "--run_path",
    "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--nproc_per_node",
)  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")


@contextmanager
def server(home: Path) -> Iterator[None]:
    """The server; the caches of its processes are in the folder `home`."""
    CONTEXT.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()  # as CPython's own tests do; it would outlive this process


def run(
    *arguments: Any, cwd: Path | None = None, env: dict[str, str] | None = None,
    hub: HubServer | None = None, timeout: float = 300,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """What `python *arguments` does: "-c" and code, "-m" and a module, or a script; then its argv.

    Args:
        env: variables beside those of the server.
        hub: the Hub that the process uses.

    Raises:
        subprocess.TimeoutExpired: it was killed after `timeout` seconds.
    """
    words = [str(word) for word in arguments]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        given = (words, cwd, env or {}, hub and hub.variables, outputs)
        process = CONTEXT.Process(target=_execute, args=given)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        texts = [path.read_text() if path.exists() else "" for path in outputs]
        return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _execute(words, cwd, env, hub, outputs):
    """In the new process."""
    importlib.invalidate_caches()  # folders of modules may have changed since the server looked
    for path, descriptor in zip(outputs, (1, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(env)
    # The path is that of the process that asks, where remote code it has loaded has a place too.
    sys.path[:] = [path for path in sys.path if not Path(path, "transformers_modules").exists()]
    if cwd is not None:
        os.chdir(cwd)
    if hub is not None:
        from .hub_server.clients import use

        use(hub, pytest.MonkeyPatch())
    kind, *rest = words
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")
