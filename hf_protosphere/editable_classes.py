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
from .prototypes import class_means
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
        shrinkage: float = 0.0, center: Tensor | None = None, batch_size: int = 64,
    ) -> Tensor:  # fmt: skip
        """New classes from a few images each, in one forward pass over all of them.

        The prototype of a class is the mean embedding of its images, scaled to unit norm: where
        its learned prototype would be at neural collapse (weight imprinting, Qi et al. 2018).

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

        Returns:
            (n, D) the mean embeddings of the new classes, scaled to unit norm.

        Raises:
            ValueError: a cross-entropy model, a known name, no images, or a mean without direction.
        """
        self._require_prototypes("add_classes")
        names = [str(name) for name in images]
        there = {class_name(name): name for name in self.config.class_names}
        if known := [there[class_name(name)] for name in names if class_name(name) in there]:
            raise ValueError(f"the model has a class {known[0]!r} already: give another, or remove_classes first.")
        if not names:
            raise ValueError("add_classes got no classes: give {'name': images, ...}.")
        if shrinkage < 0:
            raise ValueError(f"shrinkage must be 0 or more images, but got {shrinkage}.")
        was_training = self.training
        self.eval()
        counts = torch.zeros(len(names), dtype=torch.int64)
        try:
            # Lengths of means matter below, so the rows are not scaled yet.
            sums = self.prototypes.new_zeros(len(names), self.prototypes.shape[1]).double()
            for pixels, labels in self._pixels(images, processor, batch_size):
                output = self.base_model(pixels.to(self.device), return_dict=True)
                sums.index_add_(0, labels.to(self.device), output.embeddings.double())
                counts += labels.bincount(minlength=len(names))
        finally:
            self.train(was_training)
        if empty := [name for name, count in zip(names, counts) if not count]:
            raise ValueError(f"class {empty[0]!r} has no images: give at least one.")
        totals = counts[:, None].to(sums)  # (n, 1)
        means = sums / totals
        unshifted = F.normalize(means, dim=1).to(self.prototypes)
        if center is not None:
            means = means - center.to(means)
        if shrinkage:
            cosines = F.normalize(means, dim=1) @ self.prototypes.double().T
            told = (cosines / self.config.softmax_temperature).softmax(1) @ self.prototypes.double()
            means = (totals * means + shrinkage * told) / (totals + shrinkage)
        prototypes = class_means(means, torch.arange(len(names)).to(means.device), group="local")
        rows = torch.cat([self.head.weight, prototypes.to(self.head.weight)])
        self._replace_head(rows, [*self.config.class_names, *names])
        return unshifted

    def remove_classes(self, names: Sequence[str]) -> None:
        """An unknown name is a `ValueError`, and that fewer than two classes would be left."""
        self._require_prototypes("remove_classes")
        kept = sorted({*range(self.config.num_labels)} - {*self._indices(names)})
        self._replace_head(self.head.weight[kept], [self.config.class_names[i] for i in kept])

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
            rows[indices[0]] = class_means(
                self.prototypes[indices], torch.zeros_like(torch.tensor(indices)).to(rows.device), group="local"
            )[0]
            names[indices[0]] = str(new)
        gone = {i for indices in groups.values() for i in indices[1:]}
        kept = [i for i in range(len(names)) if i not in gone]
        names = [names[i] for i in kept]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"the model has a class {twice[0]!r} already: give another name.")
        self._replace_head(rows[kept], names)

    @torch.no_grad()
    def set_prototypes(self, prototypes: Tensor) -> None:
        """Replace the prototypes, for instance by `class_means`. An earlier calibration, which was
        that of the old ones, is forgotten.

        Args:
            prototypes: (K, D), any norm but zero; stored with unit norm.

        Raises:
            ValueError: another shape, zero or non-finite rows, or a cross-entropy model.
        """
        self._require_prototypes("set_prototypes")
        if prototypes.shape != self.head.weight.shape:
            raise ValueError(
                f"expected prototypes (K, D) = {tuple(self.head.weight.shape)}, one row per class, "
                f"but got {tuple(prototypes.shape)}."
            )
        norms = prototypes.double().norm(dim=-1)
        if wrong := (~(norms.isfinite() & (norms > 0))).nonzero().flatten().tolist():
            raise ValueError(f"prototypes must be finite and not zero, but rows {wrong[:5]} are.")
        self.head.weight.copy_(F.normalize(prototypes.double(), dim=-1))
        self.config.forget_calibration()

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
                f"{method} needs prototypes, but a cross_entropy model has a linear head: make a "
                "prototype classifier of it by `protosphere finetune --mode prototypes`."
            )

    def _indices(self, names: Sequence[str]) -> list[int]:
        if isinstance(names, str) or not names:
            raise ValueError(f"expected a list of names of classes, but got {names!r}.")
        for name in names:
            if name not in self.config.label2id:
                raise ValueError(f"the model has no class {name!r}, but {self.config.class_names}.")
        return [self.config.label2id[name] for name in names]

    @torch.no_grad()
    def _replace_head(self, rows: Tensor, names: list[str]) -> None:
        """Rows (K, D) become the prototypes as they are: scaling them again could change a bit."""
        if len(names) < 2:
            raise ValueError(f"a classifier has at least two classes, but {len(names)} would stay.")
        if self.config.prototypes == "simplex_etf":  # with other classes they are none
            self.config.prototypes = "learned"
        head = type(self.head)(len(names), rows.shape[1], self.config.prototypes, self.config.learned_temperature)
        head.to(device=rows.device, dtype=rows.dtype)
        if self.config.learned_temperature:
            head.log_temperature = self.head.log_temperature
        head.weight.copy_(rows)
        if isinstance(self.head.weight, nn.Parameter):
            head.weight.requires_grad_(self.head.weight.requires_grad)
        self.head = head
        self.config.id2label = dict(enumerate(names))
        config = self.config  # what was measured for the classes as they were
        config.false_rejection_rate = config.set_score = config.set_coverage = config.set_thresholds = None
        self.class_weight = self.class_bias = None
