"""How published studies train, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPreset:
    """Settings of one training.

    Attributes:
        summary: what is trained, in one sentence.
        epochs: passes over the data.
        batch_size: samples for one step of the optimizer.
        optimizer: its name in lower case.
        learning_rate_at_512: the peak of the learning rate for a batch of 512; it grows with the batch.
        schedule: how the learning rate falls after the warm-up.
        warmup_epochs: epochs in which the learning rate rises from 0.
        weight_decay: AdamW's.
        label_smoothing: share of a label that is spread over all classes.
        drop_path_rate: of stochastic depth, in the last block.
        mixup: alpha of mixup.
        erasing: probability of random erasing.
        dropout: of any kind.
        temperature: tau of soft distillation.
        distillation_weight: lambda of soft distillation.
        read_as: by field, what a study leaves open and how it is read here. Every other value is the study's own.
    """

    summary: str
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate_at_512: float
    schedule: str
    warmup_epochs: int
    weight_decay: float
    label_smoothing: float
    drop_path_rate: float
    mixup: float
    erasing: float
    dropout: float
    temperature: float
    distillation_weight: float
    read_as: Mapping[str, str]

    def learning_rate(self, batch_size: int | None = None) -> float:
        """The peak of the learning rate for a batch size; None for the preset's."""
        return self.learning_rate_at_512 * (self.batch_size if batch_size is None else batch_size) / 512


#: Presets by name.
PRESETS: Mapping[str, TrainingPreset] = {
    # Table 1 of the corrupted-image distillation study, its own column; tau and lambda from its equation 4.
    "corrupted_image_distillation": TrainingPreset(
        summary="DeiT-Ti (192 wide, 3 heads) from DeiT-III-S (384 wide, 6 heads) on corrupted CIFAR-10",
        epochs=15,
        batch_size=1024,
        optimizer="adamw",
        learning_rate_at_512=5e-4,
        schedule="cosine",
        warmup_epochs=3,
        weight_decay=0.05,
        label_smoothing=0.1,
        drop_path_rate=0.1,
        mixup=0.3,
        erasing=0.25,
        dropout=0.0,
        temperature=3.0,
        distillation_weight=0.5,
        read_as={
            "mixup": "The study gives 0.3 without saying of what: read as alpha.",
            "erasing": "The study gives 0.25: read as the probability, as DeiT is trained.",
            "drop_path_rate": "The study gives 0.1: read as the last block's rate, as DeiT is trained.",
            "schedule": "The study says cosine without its end: read as falling to 0.",
        },
    )
}
