"""One optimiser step: from batches to changed weights, however many batches it has.

A contrastive loss is no mean over micro-batches. Here the gradient is that of the one large batch (after Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021): embed every micro-batch without a
graph; take the loss and its gradient with respect to all embeddings; then embed each micro-batch again, with a graph,
and send its part of that gradient through it. The price is one more forward pass, and memory for the embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from ..errors import ArgumentError
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..objectives import OBJECTIVES, EmbeddingQueue
from .arguments import TrainArguments


class OptimizerStep:
    """Forward, backward, clipping, optimiser, schedule and the moving average of the weights.

    Dropout, mixing and the like follow seed, step and process, so that resuming repeats them,
    whatever drew random numbers in between. The model comes on its device and not wrapped: the
    accelerator wraps model and optimiser here, and saves both in its checkpoints."""

    def __init__(
        self, arguments: TrainArguments, model: ProtoSphereForImageClassification, optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler, accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.arguments, self.model, self.accelerator = arguments, model, accelerator
        for name in ("ema_decay", "lora_rank", "feature_views"):
            value = getattr(arguments, name)
            if value and (accelerator.is_fsdp2 or accelerator.state.deepspeed_plugin):
                raise ArgumentError(f"--{name} {value} needs all weights in every process: train without sharding.")
        # Evaluation, whose batches have other shapes, runs the same weights uncompiled.
        trained = torch.compile(model) if arguments.compile else model
        self.prepared_model, self.optimizer = accelerator.prepare(trained, optimizer)
        self.scheduler = scheduler
        self.average: ModelEmaV3 | None = None
        if arguments.ema_decay is not None:
            # Its warm-up forgets the first weights, of which a short run would keep too much.
            self.average = ModelEmaV3(model, decay=arguments.ema_decay, use_warmup=True)
        self.queue: EmbeddingQueue | None = None
        if arguments.queue_size:
            self.queue = EmbeddingQueue(arguments.queue_size, model.protosphere.embedding_dim).to(accelerator.device)
            model.queue.append(self.queue)

    @property
    def evaluated_model(self) -> ProtoSphereForImageClassification:
        """Whose metrics count and which is kept: the average of the weights, where there is one."""
        return self.model if self.average is None else self.average.module

    def train_mode(self) -> None:
        self.prepared_model.train()
        backbone = self.model.protosphere.backbone
        if self.arguments.freeze_backbone:  # its running statistics too
            backbone.eval()
        elif self.arguments.freeze_batchnorm:
            for layer in backbone.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def set_prototypes(self, prototypes: Tensor) -> None:
        """(K, D), for the model in training and for its average alike."""
        for model in {self.model, self.evaluated_model}:
            model.set_prototypes(prototypes)

    def __call__(self, batches: list[dict[str, Tensor]], step: int) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of all batches {"pixel_values": (m[, V], C, S, S), "labels": (m,)} as one batch."""
        arguments, accelerator = self.arguments, self.accelerator
        position = hash((arguments.seed, step, accelerator.process_index))
        torch.manual_seed(position % 2**63)
        if arguments.mixup or arguments.cutmix:
            np.random.seed(position % 2**32)
        loss, predicted = self._backward(batches)
        if arguments.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.prepared_model.parameters(), arguments.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, step=step + 1)
        labels = torch.cat([batch["labels"] for batch in batches])
        return loss, (predicted == labels).float().mean()

    def _backward(self, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Loss and predicted classes of the whole step; its gradients are left in the parameters."""
        objective = OBJECTIVES[self.model.config.objective]
        weighs = self.model.class_weight is not None and objective.prototypes is not None
        if (objective.contrasts_images or weighs) and len(batches) > 1:
            loss, logits = backward_as_one_batch(self.prepared_model, batches, self.accelerator)
            return loss, logits.argmax(-1)
        losses, predicted = [], []
        for i, batch in enumerate(batches):
            pixels, labels, asked = batch["pixel_values"], batch["labels"], self.arguments
            if asked.mixup or asked.cutmix or asked.label_smoothing:
                pixels, labels = self._mixed(pixels, labels)
            last = i == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.prepared_model):
                with self.accelerator.autocast():
                    output = self.prepared_model(pixels, labels=labels, detach_logits=True)
                loss, predictions = output.loss, output.logits.argmax(-1)
                del output  # of many classes, logits are as large as the gradients that come now
                self.accelerator.backward(loss / len(batches))
            losses.append(loss.detach())
            predicted.append(predictions)
        return torch.stack(losses).mean(), torch.cat(predicted)

    def _mixed(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Every image mixed with its mirror image in the order of the batch, of any size, or with a rectangle of that
        one, and the probabilities (m, K) of its classes, smoothed. One share and one rectangle hold for the batch."""
        arguments, share = self.arguments, 1.0
        mixup, cutmix = arguments.mixup, arguments.cutmix
        if cutmix and not (mixup and np.random.rand() < 0.5):
            share = np.random.beta(cutmix, cutmix)
            (top, bottom, left, right), share = cutmix_bbox_and_lam(pixels.shape, share)
            others, pixels = pixels.flip(0), pixels.clone()
            pixels[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        elif mixup:
            share = np.random.beta(mixup, mixup)
            pixels = pixels.lerp(pixels.flip(0), 1 - share)
        return pixels, mixup_target(labels, self.model.config.num_labels, share, arguments.label_smoothing)


def backward_as_one_batch(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], accelerator: Accelerator | None = None
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

    random_states, outputs, buffers = [], [], [buffer.clone() for buffer in bare.buffers()]
    with torch.no_grad():
        for batch in batches:
            states = get_device_states(batch["pixel_values"])  # none of the CPU
            random_states.append((torch.get_rng_state(), *states))
            with autocast():
                outputs.append(bare(batch["pixel_values"], detach_logits=True))
        for buffer, before in zip(bare.buffers(), buffers):
            buffer.copy_(before)

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
        syncs = last or not accelerator
        with nullcontext() if syncs else accelerator.no_sync(model), _replayed(*state, device):
            with autocast():
                output = model(batch["pixel_values"], detach_logits=True)
            # Linear in the embeddings with the gradient as its coefficients.
            surrogate = (output.embeddings * part).sum()
            if last:
                surrogate = sum(((p * g).sum() for p, g in zip(trained, grad_trained)), surrogate)
            accelerator.backward(surrogate) if accelerator else surrogate.backward()
    return loss.detach(), logits


@contextmanager
def _replayed(state: Tensor, devices: list[int], states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Random numbers as from these states of the CPU and of the devices, all of the same type."""
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.set_rng_state(state)
        set_device_states(devices, states, device_type=device.type)
        yield
