"""Augmentation of uint8 batches, fused and fast, each preset beside its plain albumentations twin.

train_ops(preset, image_size) -> fn(images, rng) -> images      uint8 (B, H, W, 3) in and out
reference_ops(preset, image_size)                               the twin
"""

from foldwise.augment.presets import (
    FLIPS,
    MELANOMA2020,
    PRESETS,
    Ops,
    operations,
    pipeline,
    reference_ops,
    reference_pipeline,
    train_ops,
    turns,
)

__all__ = [
    "FLIPS",
    "MELANOMA2020",
    "PRESETS",
    "Ops",
    "operations",
    "pipeline",
    "reference_ops",
    "reference_pipeline",
    "train_ops",
    "turns",
]
