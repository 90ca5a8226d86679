"""Small models with random weights, large enough that a device's noise shows."""

from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

torch.set_num_threads(1)  # threads only wait for each other in models of this size

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT = {**_SHAPE, "vocab_size": 50, "max_position_embeddings": 32, "num_labels": 5, "initializer_range": 0.1}


def vit(attention: str = "sdpa", **options: Any) -> ViTForImageClassification:
    torch.manual_seed(0)
    settings = {**_SHAPE, "image_size": 16, "patch_size": 4, "num_channels": 3, "num_labels": 5}
    settings["initializer_range"] = 0.1
    return ViTForImageClassification(ViTConfig(**{**settings, **options}, attn_implementation=attention)).eval()


def bert(attention: str = "eager") -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**_TEXT, attn_implementation=attention)).eval()


def albert() -> AlbertForSequenceClassification:
    """One block whose weights serve both layers."""
    torch.manual_seed(0)
    return AlbertForSequenceClassification(AlbertConfig(**_TEXT, embedding_size=16, num_hidden_groups=1)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False)
    config.initializer_range = 0.1
    return GPT2LMHeadModel(config).eval()


def images(count: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn((count, 3, 16, 16), generator=generator)}


def texts(count: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones((count, 9), dtype=torch.int64)
    mask[0, 6:] = 0
    return {"input_ids": torch.randint(1, 50, (count, 9), generator=generator), "attention_mask": mask}
