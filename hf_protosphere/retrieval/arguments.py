"""The arguments of retrieval: what to index, and what to look for in an index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..arguments.fields import Arguments, Count, CountOrZero, PathName, check, flag, required
from ..data.arguments import LabelledImages
from ..errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class EmbeddingArguments:
    on_bad_image: Literal["error", "skip"] = flag(
        "An image that cannot be decoded: stop and name it, or leave it out and count.", "error"
    )
    batch_size: Count = flag("Images in a step.", 256)
    num_workers: CountOrZero = flag("Processes that load images.", 2)

    def __post_init__(self) -> None:
        check(self)

    @property
    def embedding_options(self) -> dict[str, Any]:
        """What `Embedder.embed_all` takes beside images."""
        return {name: getattr(self, name) for name in ("on_bad_image", "batch_size", "num_workers")}


@dataclass(frozen=True, kw_only=True)
class IndexArguments(LabelledImages, EmbeddingArguments, Arguments):
    """What to index, and where. Invalid values raise `ArgumentError` at once."""

    model: PathName = required(
        "A ProtoSphere or transformers checkpoint (folder or Hub id), or a timm model or folder."
    )
    pretrained: PathName | None = flag("Your weights for it, a backbone: a .safetensors or .pth file, or a folder.")
    images: PathName | None = flag("Folder of images, at any depth, without labels; or give --dataset_name.")
    labels_from_folders: bool = flag("The label of an image is the class that its folder says, as in training.", False)
    index_dir: PathName = flag("Folder for the index. One that is there is brought up to date.", "outputs/index")
    layer: Literal["embeddings", "features"] = flag(
        "What stands for an image: embeddings, best for the classes of training; or features, what "
        "the projection's last layer is given, better for classes that training never saw.",
        "embeddings",
    )
    overwrite: bool = flag("Replace an index of another model or of other images.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.images is None) == (self.dataset_name is None):
            raise ArgumentError("give one of --images, a folder of images, and --dataset_name.")
        if self.images is not None and not Path(self.images).is_dir():
            raise ArgumentError(f"--images {self.images}: there is no such folder.")
        if self.labels_from_folders and self.images is None:
            raise ArgumentError("--labels_from_folders is for --images; a data set has labels.")


@dataclass(frozen=True, kw_only=True)
class SearchArguments(LabelledImages, EmbeddingArguments, Arguments):
    """What to search, in what. Invalid values raise `ArgumentError` at once."""

    index: PathName = required("Folder of an index that `protosphere index` wrote.")
    queries: list[PathName] | None = flag("Images to look for, and folders of them.")
    model: PathName | None = flag(
        "Folder or Hub id of the checkpoint, where it is no longer where the index was made."
    )
    labels_from_folders: bool = flag(
        "The label of a query is the class that its folder says, for the colours of --picture. "
        "Images of the index have theirs from it.",
        False,
    )
    k: Count = flag("Neighbours of each query.", 10)
    picture: PathName | None = flag("Draw the queries and their neighbours into this file.")
    evaluate: bool = flag(
        "Recall and mean average precision, in place of neighbours. Every image of the index is a "
        "query, that does not find itself; or those of --dataset_name are.",
        False,
    )
    recall_at: list[Count] = flag("The k of recall@k.", [1, 5, 10])
    num_queries: Count | None = flag(
        "With --evaluate: measure so many queries, drawn at random. By default all; of more than 63,000 images, where "
        "these are the queries too, fewer: 4·10^9 pairs of a query and an image."
    )
    json: bool = flag("Print JSON instead of a table.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.evaluate and not self.queries:
            raise ArgumentError("give --queries, images to look for, or --evaluate.")
        of_neighbours = ("queries", "picture", "k", "labels_from_folders")
        for name in of_neighbours if self.evaluate else ("recall_at", "num_queries", "dataset_name"):
            if name in self.given:
                mode = "--queries, not for --evaluate" if self.evaluate else "--evaluate"
                raise ArgumentError(f"--{name} is for {mode}: leave it out.")
        for query in self.queries or []:
            if not Path(query).exists():
                raise ArgumentError(f"--queries {query}: there is no such file or folder.")
