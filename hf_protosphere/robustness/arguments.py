"""The arguments of measuring errors on corrupted images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..arguments.fields import PathName, flag
from ..errors import ArgumentError
from .corruptions import load_library, parse_corruptions, parse_severities


@dataclass(frozen=True, kw_only=True)
class RobustnessArguments:
    corruptions: list[str] | None = flag(
        "Also measure errors on corrupted images: all, for the 15 corruptions of ImageNet-C, noise, blur, weather, "
        "digital, extra (4 more), or single names such as fog. The means are over those asked for."
    )
    severities: Annotated[str, int] = flag("Severities of the corruptions, as 1-5 or 1,3,5.", "1-5")
    baseline: PathName | None = flag(
        "Folder or Hub id of a ProtoSphere checkpoint whose errors on the same corrupted images "
        "the model's are divided by, as the benchmark does with AlexNet's."
    )
    corrupted_dataset: PathName | None = flag(
        "Folder of images that are corrupted already, laid out as ImageNet-C "
        "(corruption/severity/class/image) or CIFAR-10-C (corruption.npy, labels.npy), instead of "
        "corrupting those of --split. Those of the model's input size are not resized again."
    )

    @property
    def measures_robustness(self) -> bool:
        return self.corruptions is not None or self.corrupted_dataset is not None

    def check_robustness(self) -> None:
        if self.corruptions is not None:
            parse_corruptions(self.corruptions)
        parse_severities(self.severities)
        for name, default in (("baseline", None), ("severities", "1-5")):
            if getattr(self, name) != default and not self.measures_robustness:
                raise ArgumentError(f"--{name} is of corrupted images: give --corruptions.")
        if self.corrupted_dataset is not None:
            if not Path(self.corrupted_dataset).is_dir():
                raise ArgumentError(f"--corrupted_dataset {self.corrupted_dataset}: there is no such folder.")
        elif self.corruptions is not None:
            load_library()
