"""Small decoders with a cache, exported as users export theirs: learned or rotary positions, grouped queries, a window,
cross-attention."""

import functools
import math
import tempfile
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

WORDS, WIDTH, HEADS, LAYERS, WINDOW = 64, 32, 4, 2, 8
KINDS = ("gpt", "masked", "llama", "window", "cross")  # masked: as gpt, but for its inputs, which lack position_ids


class _Attention(nn.Module):
    def __init__(self, kind: str, crossing: bool = False) -> None:
        super().__init__()
        self.rotary = kind in ("llama", "window")
        self.window = WINDOW if kind == "window" else 0
        self.groups = 2 if self.rotary else 1
        self.crossing = crossing
        own = WIDTH // self.groups
        self.query, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, own), nn.Linear(WIDTH, own)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor, places: Tensor, past: tuple[Tensor, ...]):
        batch, new = x.shape[:2]
        depth = WIDTH // HEADS
        query = self.query(x).view(batch, new, HEADS, depth).transpose(1, 2)
        key, value = (
            each(source).view(batch, source.shape[1], -1, depth).transpose(1, 2) for each in (self.key, self.value)
        )
        if self.rotary:
            query, key = _rotated(query, places), _rotated(key, places)
        if past:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        cache = (key[:, :, -self.window :], value[:, :, -self.window :])
        if self.groups > 1:
            shape = batch, HEADS, key.shape[2], depth
            key, value = (each[:, :, None].expand(-1, -1, self.groups, -1, -1).reshape(shape) for each in (key, value))
        shares = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(depth) + bias, -1)
        return self.output((shares @ value).transpose(1, 2).reshape(batch, new, WIDTH)), cache


def _rotated(x: Tensor, places: Tensor) -> Tensor:
    depth = x.shape[-1]
    angles = places[:, None, :, None].float() * 10000.0 ** (-torch.arange(0, depth, 2).float() / depth)
    angles = torch.cat([angles, angles], -1)
    half = depth // 2
    return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()


class _Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.attention = _Attention(kind)
        self.crossing = _Attention("cross", crossing=True) if kind == "cross" else None
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, bias: Tensor, places: Tensor, past: tuple[Tensor, ...], source, source_bias):
        mixed, cache = self.attention(x, x, bias, places, past)
        x = self.norm(x + mixed)
        if self.crossing is not None:
            x = x + self.crossing(x, source, source_bias, places, ())[0]
        return x + self.down(torch.relu(self.up(x))), cache


class Decoder(nn.Module):
    """A language model that takes and gives its cache."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(512, WIDTH)
        self.blocks = nn.ModuleList([_Block(kind) for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *rest: Tensor):
        source = source_bias = None
        if self.kind == "masked":
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        else:
            position_ids, *rest = rest
        if self.kind == "cross":
            source, source_mask, *rest = rest
            source_bias = (1 - source_mask[:, None, None, :].float()) * -1e9
        before, new = rest[0].shape[2], input_ids.shape[1]
        x = self.words(input_ids) + (0 if self.kind in ("llama", "window") else self.places(position_ids))
        row, key = torch.arange(new)[:, None] + before, torch.arange(before + new)[None]
        seen = (key <= row) & (key > row - WINDOW) if self.kind == "window" else key <= row
        bias = torch.where(seen[None, None], 0.0, -1e9)
        bias = bias + (1 - attention_mask[:, None, None, -(before + new) :].float()) * -1e9
        caches: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            x, cache = block(x, bias, position_ids, tuple(rest[2 * layer : 2 * layer + 2]), source, source_bias)
            caches += cache
        return (self.head(x), *caches)


@functools.cache
def decoder(kind: str) -> onnx.ModelProto:
    """A decoder of a kind of `KINDS`, exported with free batch, tokens and past; not to be changed."""
    torch.manual_seed(0)
    model = Decoder(kind).eval()
    past = torch.randn(2, HEADS // (2 if kind in ("llama", "window") else 1), 4, WIDTH // HEADS)
    names = ["input_ids", "attention_mask", "position_ids"]
    arguments = [torch.ones(2, 3, dtype=torch.long), torch.ones(2, 7, dtype=torch.long), torch.arange(4, 7)[None] * 1]
    arguments[2] = arguments[2].repeat(2, 1)
    whole = "total_length" if kind == "llama" else "past_length + length"
    axes = {"input_ids": {1: "length"}, "attention_mask": {1: whole}, "position_ids": {1: "length"}}
    if kind == "masked":
        names, arguments = names[:2], arguments[:2]
        del axes["position_ids"]
    if kind == "cross":
        names += ["encoder_hidden_states", "encoder_attention_mask"]
        arguments += [torch.randn(2, 6, WIDTH), torch.ones(2, 6, dtype=torch.long)]
        axes |= {name: {1: "encoder_length"} for name in names[-2:]}
    caches = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
    axes |= {f"past_key_values.{each}": {2: "past_length"} for each in caches}
    axes |= {"logits": {1: "length"}} | {f"present.{each}": {2: "present_length"} for each in caches}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        torch.onnx.export(
            model,
            (*arguments, *[past] * len(caches)),
            path,
            input_names=[*names, *(f"past_key_values.{each}" for each in caches)],
            output_names=["logits", *(f"present.{each}" for each in caches)],
            dynamic_axes={name: {0: "batch", **own} for name, own in axes.items()},
            opset_version=17,
            dynamo=False,
        )
        return onnx.load(path)
