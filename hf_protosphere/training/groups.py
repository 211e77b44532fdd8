"""Groups of the arguments of training: the groups of `--help`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..arguments.fields import Beside, Count, CountOrZero, PathName, Positive, Seed, flag

# The keys of `objectives.OBJECTIVES`, which imports torch: an error in an argument does not wait for that.
ObjectiveName = Literal[
    "nonl", "ntce", "scl", "decoupled_scl", "sincere", "normface", "decoupled_normface", "dot_regression",
    "cross_entropy",
]  # fmt: skip
Share = Annotated[float, "[0, 1]"]
OfCrops = Beside("augmentation", "resized_crop|contrastive")


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    backbone: PathName = flag(
        "A timm architecture, a transformers model type, or, with --pretrained, a transformers checkpoint.", "resnet18"
    )
    backbone_source: Literal["timm", "transformers"] = flag("Where the backbone is from.", "timm")
    backbone_kwargs: Annotated[str, dict] | None = flag("Its options as JSON, such as '{\"patch_size\": 4}'.")
    pretrained: Annotated[str, bool] = flag(
        "Start from the backbone's weights on the Hub, or from yours: a .safetensors or .pth file, or a saved folder.",
        False, nargs="?", const=True,
    )  # fmt: skip
    partial_weights: bool = flag("Of --pretrained WHERE take what fits, and leave out the rest.", False)
    resume_from: PathName | None = flag(
        "Start from this ProtoSphere checkpoint, a folder or an id on the Hub: its network, "
        "weights, objective and classes."
    )
    small_images: bool = flag("ResNets begin with a 3x3 convolution of stride 1, no max-pool: for 32 pixels.", False)
    projection: Literal["auto", "none", "linear", "mlp"] = flag(
        "Map from the backbone's features to the sphere. auto: linear where the features are "
        "hardly negative, as after a ReLU or SiLU, from where prototypes never come to the class "
        "means, else none; none for cross_entropy.",
        "auto",
    )
    projection_dim: Count | None = flag(
        "Dimension of the embeddings; auto with it is linear. By default the features' for linear, 128 for mlp."
    )
    projection_hidden_dim: Annotated[Count, Beside("projection", "mlp")] | None = flag(
        "Width of the MLP; by default the features'."
    )
    projection_batch_norm: Annotated[bool, Beside("projection", "mlp")] = flag(
        "Batch norm within the MLP, before its ReLU.", False
    )
    projection_dropout: Annotated[float, "[0, 1)"] = flag(
        "Share of the backbone's features, and of the MLP's hidden values, dropped in training: "
        "for a frozen backbone, whose features are learned by heart soon.",
        0.0,
    )
    objective: ObjectiveName = flag(
        "What to train: ntce and nonl (prototypes against the batch), normface (images against prototypes), scl and "
        "sincere (views against views, then class means), dot_regression (images to a fixed simplex ETF), or the "
        "cross_entropy baseline; decoupled_ leaves the own class out of the denominator, as nonl does.",
        "ntce",
    )
    margin: Annotated[float, "[0, 1]"] = flag(
        "Of normface: how much nearer to its own prototype than to others an image must be, as in "
        "face recognition, where 0.35 for cosface and 0.5 for arcface are usual.",
        0.0,
    )
    margin_type: Literal["cosface", "arcface"] = flag("Of cosines, or of angles.", "cosface")
    prototypes: Literal["learned", "simplex_etf", "class_means"] | None = flag(
        "learned; simplex_etf, fixed at the optimum (the default for dot_regression); or "
        "class_means, recomputed after every epoch (the default where views are contrasted)."
    )
    reserve_classes: CountOrZero = flag(
        "Train on a simplex ETF with so many spare vertices, for add-class to take.", 0
    )
    temperature: Positive | None = flag(
        "Cosines are divided by it, in the loss and in the scores. By default it follows from the objective and the K "
        "classes: a factor times K / ((K - 1) ln(K - 1)), at which the softmax of an optimal classifier gives the own "
        "class one half; with --finetune_from, for as many classes and the same objective, it is the checkpoint's."
    )
    learn_temperature: bool = flag("Train the temperature as well, from there on, between 0.01 and 1.", False)
    image_size: Count | None = flag(
        "Side of the square input. By default the images' own size, rounded up to a multiple of 32, at most 224."
    )
    num_channels: Literal[1, 3] | None = flag("1 or 3; by default what the images have.")


@dataclass(frozen=True, kw_only=True)
class AdaptationArguments:
    finetune_from: PathName | None = flag(
        "Start from the network of this ProtoSphere checkpoint, a folder or an id on the Hub, for "
        "the classes of the data set. Those that it knows by name keep their prototypes."
    )
    freeze_backbone: bool = flag("Train the projection and the head only.", False)
    feature_views: Annotated[CountOrZero, Beside("freeze_backbone")] = flag(
        "With --freeze_backbone: compute the backbone's features once, of so many versions of each "
        "training image, and train on them in seconds: 1, the plain one; 2, its mirror image too "
        "(with --horizontal_flip); more are augmented. They are kept in the cache of datasets. 0: "
        "images pass through the backbone in every epoch, augmented.",
        0,
    )
    layer_decay: Annotated[float, "(0, 1]"] | None = flag(
        "Learning rate of a layer over that of the layer above, such as 0.75: the nearer to the "
        "image, the less a layer changes."
    )
    freeze_batchnorm: bool = flag(
        "Batch norms of the backbone keep the statistics that they have, and only their scale and shift are trained: "
        "those of small batches are too rough to take their place.",
        False,
    )
    lora_rank: Count | None = flag(
        "Train low-rank adapters of the backbone (peft) beside the projection and the head, and "
        "merge them into the weights that are saved."
    )
    imprint: bool = flag(
        "Learned prototypes start from the class means of the training images, where the "
        "checkpoint knows no prototype of the class: one more pass.",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class OptimizationArguments:
    _argument_group_name = "optimisation"

    epochs: CountOrZero = flag("Passes over the training images; 0 measures and saves the network as it starts.", 100)
    batch_size: Count = flag("Images per process and step; the negatives of NTCE and NONL.", 256)
    classes_per_batch: Count | None = flag(
        "Every batch holds so many classes with the same number of images each: class-balanced "
        "sampling, for long tails and many classes. By default images come at random."
    )
    queue_size: CountOrZero = flag(
        "So many embeddings of earlier batches, of each process, are contrasted with by nonl and "
        "ntce as well, as constants: more negatives for small batches.",
        0,
    )
    class_weights: Literal["none", "balanced"] = flag(
        "balanced: every image weighs 1 / (images of its class). For long tails.", "none"
    )
    logit_adjustment: Annotated[float, "[0, inf)"] = flag(
        "For long tails, of normface, decoupled_normface and cross_entropy: so many times (1 in "
        "theory) the logarithm of a class's share of the images is added to its score in training.",
        0.0,
    )
    gradient_accumulation_steps: Count = flag(
        "Batches per step; losses contrast across all of them, by one more forward pass.", 1
    )
    optimizer: str = flag("sgd, adamw, or one of timm's, such as muon, lion or lamb.", "sgd")
    learning_rate: Positive | None = flag(
        "Peak learning rate. By default 1.2 * (images per step) / 256, at most 1, for SGD; for cross_entropy, views, "
        "and from trained weights 0.1 in place of 1.2; 0.001 for AdamW; the others have none."
    )
    momentum: Annotated[float, "[0, 1)"] = flag("Of SGD and others that have one.", 0.9)
    nesterov: Annotated[bool, Beside("optimizer", "sgd")] = flag("The momentum of Nesterov.", True)
    weight_decay: Annotated[float, "[0, inf)"] | None = flag(
        "Not of biases, norms and prototypes. By default 5e-4 for SGD, 0.05 for AdamW, else 0."
    )
    decay_all: bool = flag("Weight decay of biases, norms and prototypes too.", False)
    schedule: Literal["cosine", "step", "constant"] = flag(
        "Of the learning rate, after warm-up; step: times --gamma at --milestones.", "cosine"
    )
    min_lr_rate: Annotated[Share, Beside("schedule", "cosine")] = flag(
        "Where the cosine ends, as a share of the peak.", 0.0
    )
    milestones: list[float] | None = flag(
        "Epochs at which the learning rate falls, such as 60 75 90, with --schedule step."
    )
    gamma: Annotated[float, "(0, 1)", Beside("schedule", "step")] = flag("The factor there.", 0.1)
    warmup_epochs: Annotated[float, "[0, inf)"] = flag("Linear warm-up. By default 1, of a single epoch half.", 1.0)
    warmup_lr_rate: Annotated[Share, Beside("warmup_epochs")] = flag(
        "Where the warm-up begins, as a share of the peak.", 0.0
    )
    max_grad_norm: Positive | None = flag("Clip the gradient to this norm.")
    augmentation: Literal["none", "crop", "resized_crop", "contrastive"] = flag(
        "crop: shift by an eighth; resized_crop: as for ImageNet; contrastive: with colour jitter, as for SCL.",
        "resized_crop",
    )
    horizontal_flip: bool = flag("Mirror images at random. Not for digits or text.", True)
    crop_scale: Annotated[float, "(0, 1]", OfCrops] | None = flag(
        "Smallest area of a resized crop, as a share of the image. By default 0.08, below 128 "
        "pixels 0.5, with contrastive 0.2; the paper's is 0.2."
    )
    blur: Share = flag("Share of the images under a Gaussian blur; 0.5 is usual for SCL.", 0.0)
    rand_augment: Annotated[CountOrZero, "[0, 30]"] | None = flag(
        "RandAugment: two operations on each image, of this strength; 9 is usual."
    )
    random_erasing: Share = flag("Share of the images with a part erased; 0.25 is usual.", 0.0)
    views: Count | None = flag("Augmented views of each image per step. By default 2 for scl and its like, else 1.")
    sync_batchnorm: bool = flag("Batch norm over all processes (several CUDA devices).", False)
    label_smoothing: Annotated[float, "[0, 1)"] = flag("Of the cross_entropy baseline only.", 0.0)
    mixup: Annotated[float, "[0, 10]"] = flag(
        "Of the cross_entropy baseline: mix pairs of images, by a share from Beta(a, a).", 0.0
    )
    cutmix: Annotated[float, "[0, 10]"] = flag(
        "Paste a part of another image; 1 is usual. Beside --mixup each step takes one.", 0.0
    )
    ema_decay: Annotated[float, "(0, 1)"] | None = flag(
        "Evaluate and keep an exponential moving average of the weights, such as 0.999."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = flag("Of the backbone, not the losses.", "no")
    channels_last: bool = flag(
        "Where windows of convolutions overlap (no ViT's): channels last in memory, faster.", True
    )
    compile: bool = flag("Compile the model with torch.compile: slow to start, then faster.", False)
    seed: Seed = flag("Of weights, order, augmentation and the validation split.", 0)


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    output_dir: PathName = flag("Folder for model, metrics, curves, checkpoints.", "outputs/run")
    overwrite: bool = flag("Replace an earlier run in --output_dir.", False)
    dry_run: bool = flag("Build everything, take two steps, print memory and time, leave nothing behind.", False)
    resume: bool = flag("Go on from the last checkpoint in --output_dir.", False)
    eval_batch_size: Count | None = flag("By default twice --batch_size.")
    evaluate_every: Count = flag("Epochs between evaluations on the validation split.", 1)
    nc_every: CountOrZero = flag("Epochs between neural-collapse metrics, at an evaluation; 0 for the end only.", 1)
    nc_every_steps: CountOrZero = flag("Measure after every so many steps as well; 0 for never.", 0)
    nc_train_samples: CountOrZero | None = flag(
        "Measure on so many training images too, a fixed sample balanced by class; 0 for none. By "
        "default 1 %% of them, at most 10,000, but at least 10 of each class."
    )
    nc_target: Annotated[float, "(0, 100]"] = flag(
        "Report when each metric first attains this percentage of its optimum.", 95.0
    )
    best_metric: str = flag(
        "What the best epoch, whose model is kept, is chosen by, on the validation split: accuracy, "
        "mean_class_accuracy, neural_collapse (its least attained metric) or one of its metrics, such as nc1_cdnv.",
        "accuracy",
    )
    early_stopping_patience: Count | None = flag("Stop after so many epochs without a better one.")
    checkpoint_every: Count = flag("Epochs between checkpoints to resume from.", 1)
    keep_checkpoints: Count = flag("How many of them to keep, the newest.", 1)
    pictures: bool = flag("Draw the run at its end; `protosphere plot` draws it later.", True)
    report_to: list[str] | None = flag(
        "tensorboard, trackio, wandb, several of them, or none. By default tensorboard, if there."
    )
    project: str = flag("Name of the project in trackio and wandb.", "hf_protosphere")
    run_name: str | None = flag("Name of the run there; by default that of --output_dir.")
