"""Gradient accumulation that keeps the whole effective batch as the contrast set.

A contrastive loss is no mean over micro-batches: averaging theirs would contrast each with itself
only. Here the gradient is that of the one large batch, in two passes (after Gao et al., "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021): embed every micro-batch
without a graph; take the loss and its gradient with respect to all embeddings at once; then embed
each micro-batch again, with a graph, and send its part of that gradient through it. The price is
one more forward pass, and memory for the embeddings instead of the activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..modeling_protosphere import ProtoSphereForImageClassification


def backward_as_one_batch(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    accelerator: Accelerator | None = None,
) -> tuple[Tensor, Tensor]:
    """Add to the gradients what one backward pass over the concatenated batches would add.

    Dropout and stochastic depth draw the same numbers in both passes, and buffers (batch norm's
    running statistics) are updated once. Batch norm normalises each micro-batch by itself, as in
    any gradient accumulation: with it, a larger batch is a different network.

    Args:
        model: a `ProtoSphereForImageClassification`, possibly prepared by Accelerate (wrapped in
            DistributedDataParallel: the contrast then spans all processes as well).
        batches: micro-batches {"pixel_values": (m, C, H, W) or (m, V, C, H, W), "labels": (m,)}.
        accelerator: its mixed precision, gradient scaling and wrapping are followed.

    Returns:
        The loss of the whole batch, detached, and the logits (M, K).

    Example:
        >>> from hf_protosphere import ProtoSphereConfig
        >>> config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=4)
        >>> model = ProtoSphereForImageClassification(config)
        >>> halves = [{"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.arange(4)}] * 2
        >>> loss, logits = backward_as_one_batch(model, halves)
        >>> logits.shape, model.head.weight.grad.shape
        (torch.Size([8, 4]), torch.Size([4, 96]))
    """
    bare = accelerator.unwrap_model(model) if accelerator else model
    autocast = accelerator.autocast if accelerator else nullcontext
    device = batches[0]["pixel_values"].device

    random_states, outputs = [], []
    with _unchanged_buffers(bare), torch.no_grad():
        for batch in batches:
            random_states.append(_random_state(device))
            with autocast():
                outputs.append(bare(batch["pixel_values"]))

    embeddings = torch.cat([output.embeddings for output in outputs]).requires_grad_()
    logits = torch.cat([output.logits for output in outputs])
    labels = torch.cat([batch["labels"] for batch in batches])
    # Not backward(): hooks of DistributedDataParallel must wait for the last micro-batch.
    trained = list(bare.head.parameters())  # none when the prototypes are fixed
    loss = bare.objective(embeddings, logits, labels)
    grad_embeddings, *grad_trained = torch.autograd.grad(loss, [embeddings, *trained])

    parts = grad_embeddings.split([len(batch["labels"]) for batch in batches])
    for i, (batch, state, part) in enumerate(zip(batches, random_states, parts)):
        last = i == len(batches) - 1
        with ExitStack() as contexts:
            if accelerator and not last:
                contexts.enter_context(accelerator.no_sync(model))
            contexts.enter_context(_replayed(state, device))
            with autocast():
                output = model(batch["pixel_values"])
            # Linear in the embeddings with the gradient as its coefficients.
            surrogate = (output.embeddings * part).sum()
            if last:
                for parameter, grad in zip(trained, grad_trained):
                    surrogate = surrogate + (parameter * grad).sum()
            accelerator.backward(surrogate) if accelerator else surrogate.backward()
    return loss.detach(), logits


@contextmanager
def _unchanged_buffers(model: ProtoSphereForImageClassification) -> Iterator[None]:
    saved = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), saved):
        buffer.copy_(value)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(device)


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.get_device_module(device).set_rng_state(state[1], device)
        yield
