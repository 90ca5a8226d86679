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


class PlainEncoder(torch.nn.Module):
    """PyTorch's own transformer: attention is one function there, and tokens may come before samples."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first, dropout=0.0, norm_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(32, 5)
        self.batch_first = batch_first
        for parameter in self.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.encoder(x)
        return self.head(y.mean(1 if self.batch_first else 0))


class PlainAttention(torch.nn.Module):
    """Attention that also gives its weights, which PyTorch computes by other functions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = torch.nn.Linear(32, 5)
        torch.nn.init.normal_(self.attention.in_proj_weight, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, weights = self.attention(x, x, x)
        return self.head(y.mean(1)) + weights.mean()
