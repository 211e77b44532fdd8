"""Run by test_commands_across_processes.py under a launcher: commands, one after another.

commands.py '[["evaluate", flag, value, ...], ["trainer_with_callback", argument, ...], ...]'
"""

import json
import sys

from accelerate import PartialState

from hf_protosphere.cli import main
from hf_protosphere.evaluation import callbacks
from tests.integration import trainer_with_callback

if __name__ == "__main__":
    # The end of a job destroys the process group, which the next one needs.
    PartialState.destroy_process_group = lambda *_, **__: None
    callbacks.draw_run = lambda *_, **__: []  # most of the time of a short training
    for command, *arguments in json.loads(sys.argv[1]):
        if command == "trainer_with_callback":
            trainer_with_callback.main(*arguments)
        else:
            main([command, *arguments])
