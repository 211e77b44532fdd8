"""The trackers of a run: tensorboard, trackio and wandb, through Accelerate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accelerate import Accelerator

from .arguments import TrainArguments


def start_trackers(accelerator: Accelerator, arguments: TrainArguments, run_id: str) -> None:
    """Start what `--report_to` names; a resumed run goes on where it was.

    Args:
        run_id: the run's identity, the same when it is resumed.
    """
    name = arguments.run_name or Path(arguments.output_dir).resolve().name
    plain = (bool, int, float, str)
    accelerator.init_trackers(
        arguments.project,
        config={
            key: value if isinstance(value, plain) else str(value)
            for key, value in dataclasses.asdict(arguments).items()
        },
        init_kwargs={
            "wandb": {
                "name": name, "id": run_id, "resume": "allow", "dir": arguments.output_dir
            },
            "trackio": {"name": name, "resume": "allow" if arguments.resume else "never"},
        },
    )  # fmt: skip
