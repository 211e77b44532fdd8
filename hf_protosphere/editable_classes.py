"""Classes that come and go without training: a class is a row of prototypes and a name.

Travels to the Hub with every checkpoint."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import load_image_processor
from .configuration_protosphere import build_image_processor
from .objectives import class_terms
from .prototypes import chosen_margin, class_means, turned
from .rgb import pixels_and_labels


def class_name(name: str) -> str:
    """The form in which names of classes are compared: in Unicode's NFC, without spaces at the ends or in a row."""
    return " ".join(unicodedata.normalize("NFC", str(name)).split())


class EditableClasses:
    """Adds, removes and merges the classes of a `ProtoSphereForImageClassification`.

    Logits of the classes that stay are the same as before, to the bit: of whatever number of classes,
    `config.softmax_temperature` stays. So a calibrated model keeps its temperature, and its rejection threshold too,
    which goes on to serve. What they were chosen for does not stay: a new prototype makes more images known, one that
    is gone fewer, and of images of a new class nothing was measured. `config.false_rejection_rate`, the promise of the
    threshold, becomes None until `protosphere calibrate` is run again; and prediction sets, all promise, go."""

    @torch.no_grad()
    def add_classes(
        self, images: Mapping[str, Tensor | Iterable[Any]], processor: Any = None, *,
        shrinkage: float = 0.0, center: Tensor | None = None, known: tuple[Tensor, Tensor] | None = None,
        batch_size: int = 64,
    ) -> Tensor:  # fmt: skip
        """New classes from a few images each, in one forward pass over all of them.

        The prototype of a class is the mean embedding of its images, scaled to unit norm: where
        its learned prototype would be at neural collapse (weight imprinting, Qi et al. 2018).

        With `known`, a class of two images or more gets what tells images apart best when every one of its own is left
        out in turn (`prototypes.chosen_margin`): a margin, which is subtracted from its cosines, and, if that is
        better than its mean, one of `config.reserved_classes` spare vertices, `prototypes.turned` towards the mean.

        Args:
            images: for each new name (n, C, H, W) pixel values, or PIL images, read one batch at a time.
            processor: makes pixel values of PIL images; by default the checkpoint's, or of a
                model that was not loaded what its configuration describes.
            shrinkage: κ ≥ 0, in images. The mean of n embeddings is averaged, with weights n and κ, with what the
                known classes say of it: their prototypes, weighted by the softmax of its cosines. κ of about 10
                steadies a class of one image or two, and moves a prototype of many images little.
            center: (D,) the mean embedding of the training images, which is subtracted from the mean of each class.
                Where a model is far from neural collapse, its embeddings share a direction that learned and ETF
                prototypes have not; a prototype that keeps it is nearer to the images of every class than their own.
                Of class-mean prototypes leave it out: they all keep it.
            known: (M, D) embeddings of images of the known classes, and (M,) their labels.

        Returns:
            (n, D) the mean embeddings of the new classes, scaled to unit norm.

        Raises:
            ValueError: a cross-entropy model, a known name, no images, or a mean without direction.
        """
        self._require_prototypes("add_classes")
        names = [str(name) for name in images]
        there = {class_name(name): name for name in self.config.class_names}
        if twice := [there[class_name(name)] for name in names if class_name(name) in there]:
            raise ValueError(f"the model has a class {twice[0]!r} already: give another, or remove_classes first.")
        if not names:
            raise ValueError("add_classes got no classes: give {'name': images, ...}.")
        if shrinkage < 0:
            raise ValueError(f"shrinkage must be 0 or more images, but got {shrinkage}.")
        was_training = self.training
        self.eval()
        found: list[list[Tensor]] = [[] for _ in names]
        try:
            for pixels, labels in self._pixels(images, processor, batch_size):
                output = self.base_model(pixels.to(self.device), return_dict=True)
                for label, embedding in zip(labels.tolist(), output.embeddings.double()):
                    found[label].append(embedding)
        finally:
            self.train(was_training)
        if empty := [name for name, embeddings in zip(names, found) if not embeddings]:
            raise ValueError(f"class {empty[0]!r} has no images: give at least one.")
        rows, spare, margins = self.prototypes.double(), self.head.spare, self._margins
        first, unshifted, spare = rows, [], None if spare is None else spare.double()
        known = known and (known[0].to(rows), known[1].to(rows.device))
        for name, own in zip(names, map(torch.stack, found)):  # (n, D)
            # None, and to be placed then each.
            left_out = F.pad(own, (0, 0, 1, 0))[: 1 if known is None or len(own) == 1 else None]
            counts = len(own) - left_out.any(1, keepdim=True).to(own)
            means = (own.sum(0) - left_out) / counts
            unshifted.append(F.normalize(means[0], dim=0))
            if center is not None:
                means = means - center.to(means)
            if shrinkage:
                cosines = F.normalize(means, dim=1) @ first.T
                told = (cosines / self.config.softmax_temperature).softmax(1) @ first
                means = (counts * means + shrinkage * told) / (counts + shrinkage)
            if not means[0].any():
                raise ValueError(f"the mean of class {name!r} is zero: it has no direction.")
            prototype, margin, spare = _placed(means, own, known, rows, rows.new_tensor(margins), spare)
            known = known and (torch.cat([known[0], own]), F.pad(known[1], (0, len(own)), value=len(rows)))
            rows, margins = torch.cat([rows, prototype[None]]), [*margins, margin]
        rows = torch.cat([self.head.weight, rows[len(first) :].to(self.head.weight)])
        self._replace_head(rows, [*self.config.class_names, *names], margins, spare)
        return torch.stack(unshifted).to(self.prototypes)

    def remove_classes(self, names: Sequence[str]) -> None:
        """An unknown name is a `ValueError`, and that fewer than two classes would be left."""
        self._require_prototypes("remove_classes")
        kept = sorted({*range(self.config.num_labels)} - {*self._indices(names)})
        names, margins = self.config.class_names, self._margins
        self._replace_head(self.head.weight[kept], *([of_all[i] for i in kept] for of_all in (names, margins)))

    @torch.no_grad()
    def merge_classes(self, merged: Mapping[str, Sequence[str]]) -> None:
        """Several classes as one, at the place of the first: its prototype is their mean, scaled to unit norm.

        Args:
            merged: {"new name": ["old name", "old name", ...], ...}; the new name may be one of the old ones.

        Raises:
            ValueError: an unknown name, one that is merged twice, a new name that another class
                has, or fewer than two classes would be left.
        """
        self._require_prototypes("merge_classes")
        groups = {new: self._indices(old) for new, old in merged.items()}
        members = [i for indices in groups.values() for i in indices]
        if twice := [i for i, count in Counter(members).items() if count > 1]:
            raise ValueError(f"class {self.config.class_names[twice[0]]!r} is merged twice.")
        rows, names = self.head.weight.detach().clone(), self.config.class_names
        for new, indices in groups.items():
            one_class = torch.zeros(len(indices), dtype=torch.int64, device=rows.device)
            rows[indices[0]] = class_means(self.prototypes[indices], one_class, group="local")[0]
            names[indices[0]] = str(new)
        gone = {i for indices in groups.values() for i in indices[1:]}
        kept = [i for i in range(len(names)) if i not in gone]
        names = [names[i] for i in kept]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"the model has a class {twice[0]!r} already: give another name.")
        self._replace_head(rows[kept], names, [self._margins[i] for i in kept])

    @torch.no_grad()
    def set_prototypes(self, prototypes: Tensor) -> None:
        """Replace the prototypes, for instance by `class_means`. An earlier calibration and margins, which were
        those of the old ones, are forgotten.

        Args:
            prototypes: (K, D), any norm but zero; stored with unit norm.

        Raises:
            ValueError: another shape, zero or non-finite rows, or a cross-entropy model.
        """
        self._require_prototypes("set_prototypes")
        if prototypes.shape != self.head.weight.shape:
            raise ValueError(
                f"expected prototypes (K, D) = {tuple(self.head.weight.shape)}, but got {tuple(prototypes.shape)}."
            )
        norms = prototypes.double().norm(dim=-1)
        if wrong := (~(norms.isfinite() & (norms > 0))).nonzero().flatten().tolist():
            raise ValueError(f"prototypes must be finite and not zero, but rows {wrong[:5]} are.")
        self.head.weight.copy_(F.normalize(prototypes.double(), dim=-1))
        self.forget_calibration()
        self.config.class_margins = None

    def set_class_counts(self, counts: Sequence[int], *, balanced: bool = True, logit_adjustment: float = 0.0) -> None:
        """Train for classes of unequal size: with `balanced` an image weighs 1 / (images of its
        class), with τ = `logit_adjustment` a score gains τ·log(share of its class), in the loss of
        training alone; see `objectives.class_terms`. None of it is saved.

        Args:
            counts: (K,) training images of each class.

        Raises:
            ValueError: counts of other classes; and as `class_terms`.
        """
        if len(counts) != self.config.num_labels:
            raise ValueError(f"expected {self.config.num_labels} counts, but got {len(counts)}.")
        terms = class_terms(self.config.objective, counts, balanced=balanced, logit_adjustment=logit_adjustment)
        self.class_weight, self.class_bias = (x if x is None else x.to(self.device) for x in terms)

    def forget_calibration(self) -> None:
        """As `ProtoSphereConfig.forget_calibration`, and what the score of unknown images was fitted to."""
        self.config.forget_calibration()
        self.hold_score("cosine")

    def hold_score(self, name: str, axes: Tensor | None = None, centers: Tensor | None = None) -> None:
        """Tell unknown images by this score of `prototypes.known_score`, with its (D, R) and (C, D), if it has any."""
        self.config.rejection_score = name
        self.config.rejection_sizes = None if axes is None else [axes.shape[1], len(centers)]
        self.rejection_axes, self.rejection_centers = (
            x if x is None else x.detach().to(self.device, torch.float32).clone() for x in (axes, centers)
        )

    def _pixels(self, images: Mapping[str, Any], processor: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixel values and labels (m,) of all classes, in batches that cross their borders."""
        pairs = ((image, i) for i, of_class in enumerate(images.values()) for image in of_class)
        for first in pairs:
            batch = chain([first], islice(pairs, batch_size - 1))
            if isinstance(first[0], Tensor):
                pixels, labels = zip(*batch)
                pixels = torch.stack(pixels)
            else:
                if processor is None:
                    name = self.config._name_or_path
                    processor = load_image_processor(name) if name else build_image_processor(self.config)
                pixels, labels = pixels_and_labels(batch, processor)
            yield pixels, torch.tensor(labels)

    def _require_prototypes(self, method: str) -> None:
        if not self.config.has_prototypes:
            raise ValueError(
                f"{method} needs prototypes: make them of the linear head by `protosphere finetune --mode prototypes`."
            )

    def _indices(self, names: Sequence[str]) -> list[int]:
        if isinstance(names, str) or not names:
            raise ValueError(f"expected a list of names of classes, but got {names!r}.")
        for name in names:
            if name not in self.config.label2id:
                raise ValueError(f"the model has no class {name!r}, but {self.config.class_names}.")
        return [self.config.label2id[name] for name in names]

    @property
    def _margins(self) -> list[float]:
        return self.config.class_margins or [0.0] * self.config.num_labels

    @torch.no_grad()
    def _replace_head(self, rows: Tensor, names: list[str], margins: list[float], spare: Tensor | None = None) -> None:
        """Rows (K, D) become the prototypes as they are: scaling them again could change a bit."""
        if len(names) < 2:
            raise ValueError(f"a classifier has at least two classes, but {len(names)} would stay.")
        config, spare = self.config, self.head.spare if spare is None else spare
        reserved = 0 if spare is None else len(spare)
        vertices = config.num_labels + config.reserved_classes
        if config.prototypes == "simplex_etf" and len(names) + reserved != vertices:  # it is none any more
            config.prototypes = "learned"
        config.class_margins, config.reserved_classes = (margins if any(margins) else None), reserved
        head = type(self.head)(len(names), rows.shape[1], config.prototypes, config.learned_temperature, reserved)
        head.to(device=rows.device, dtype=rows.dtype)
        if reserved:
            head.spare.copy_(spare)
        if self.config.learned_temperature:
            head.log_temperature = self.head.log_temperature
        head.weight.copy_(rows)
        if isinstance(self.head.weight, nn.Parameter):
            head.weight.requires_grad_(self.head.weight.requires_grad)
        self.head = head
        config.id2label = dict(enumerate(names))
        # What was measured for the classes as they were.
        config.false_rejection_rate = config.set_score = config.set_coverage = config.set_thresholds = None
        if config.rejection_sizes:  # to which a new class is unknown
            config.rejection_threshold = None
            self.hold_score("cosine")
        self.class_weight = self.class_bias = None


def _placed(
    means: Tensor, embeddings: Tensor, known: tuple[Tensor, Tensor] | None, rows: Tensor, margins: Tensor,
    spare: Tensor | None,
) -> tuple[Tensor, float, Tensor | None]:  # fmt: skip
    """(D,) the prototype of a new class, its margin, and the spare vertices that are left of (N, D).

    Args:
        means: (1 + n, D) of all of its `embeddings` (n, D), then without each; or (1, D), where none is left out.
        rows, margins: (K, D) and (K,), of the classes before, as are `known`.
    """
    candidates = [F.normalize(means, dim=1)]
    if len(means) == 1:
        return candidates[0][0], 0.0, spare
    if spare is not None and len(spare):
        nearest = int((spare @ means[0]).argmax())
        candidates.append(turned(spare[nearest], rows, means))
    others, labels = known
    scores, rivals = others @ rows.T - margins, (embeddings @ rows.T - margins).amax(1)
    own = scores.gather(1, labels[:, None])[:, 0].where(scores.argmax(1) == labels, -torch.inf)
    found = [chosen_margin((embeddings * c[1:]).sum(1) - rivals, others @ c[0] - own, labels) for c in candidates]
    best = max(range(len(found)), key=lambda i: found[i][1])  # of equals the mean
    prototype = candidates[best][0]
    if best == 1:  # a reflection takes the vertex there; the prototypes lie in its mirror
        axis = F.normalize(spare[nearest] - prototype, dim=0)
        spare = torch.cat([spare[:nearest], spare[nearest + 1 :]])
        spare = spare - 2 * (spare @ axis)[:, None] * axis
    return prototype, found[best][0], spare
