"""A gloo process group that writes down what it is given: also by DistributedDataParallel, whose calls Python
does not see."""

import torch
import torch.distributed as dist

# The methods of a process group, as torch's functions and its C++ call them, by what they do.
OPERATIONS = {
    "allreduce": "all_reduce", "allreduce_coalesced": "all_reduce",
    "allgather": "all_gather", "all_gather_single": "all_gather", "allgather_coalesced": "all_gather",
    "_allgather_base": "all_gather", "allgather_into_tensor_coalesced": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter", "reduce_scatter_single": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter", "reduce_scatter_single_coalesced": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "broadcast": "broadcast", "reduce": "reduce", "gather": "gather", "scatter": "scatter", "barrier": "barrier",
    "alltoall": "all_to_all", "alltoall_base": "all_to_all", "all_to_all_single": "all_to_all",
    "send": "send", "recv": "recv", "recv_anysource": "recv",
}  # fmt: skip


class RecordingGroup(dist.ProcessGroup):
    """`calls` are (operation, bytes of the tensors that this process gave)."""

    def __init__(self, *of_gloo):
        super().__init__(*of_gloo[1:3])
        self.gloo, self.calls = dist.ProcessGroupGloo(*of_gloo), []

    def getBackendName(self):
        return "recording"


def _recorded(name, operation):
    # What comes back is the first argument of all of these, what is given the second.
    given = 1 if operation in ("all_gather", "reduce_scatter", "gather", "scatter", "all_to_all") else 0

    def call(self, *args):
        self.calls.append((operation, sum(t.nbytes for t in _tensors(args[given : given + 1]))))
        return getattr(self.gloo, name)(*args)

    return call


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


for _name, _operation in OPERATIONS.items():
    setattr(RecordingGroup, _name, _recorded(_name, _operation))


def connect():
    """This process, as a launcher describes it, to the others; the group that records."""
    groups = []

    def make(*of_gloo):
        groups.append(RecordingGroup(*of_gloo))
        return groups[-1]

    dist.Backend.register_backend("recording", make, devices=["cpu"])
    dist.init_process_group("recording")
    return groups[0]
