"""Families of models beyond plain transformers, exported from small configurations: all of their products are sites."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from emu.rewriter import rewrite
from emu.runtime import session

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="needs PyTorch: install emu with the extra 'train'")
transformers = pytest.importorskip("transformers", reason="needs transformers: install emu with the extra 'train'")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BLOCK = ("query", "key", "value", "attention_scores", "attention_context", "attention_output", "ffn_up", "ffn_down")
IMAGE, LARGE = (2, 3, 32, 32), (2, 3, 64, 64)
# By name: the model's class, its configuration, the shape of its input (of tokens where it has two dimensions and is
# no sound), and components that must be there, each so many times.
FAMILIES = {
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        IMAGE,
        {"other": 7},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        IMAGE,
        {"other": 17},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "sr_ratios": [2, 1],
            "num_attention_heads": [1, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
        },
        IMAGE,
        dict.fromkeys(BLOCK, 2),
    ),
    "whisper_encoder": (
        "WhisperModel",
        {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "vocab_size": 100,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "pad_token_id": 0,
            "decoder_start_token_id": 1,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        (2, 8, 40),
        dict.fromkeys(BLOCK, 1),
    ),
    "xlnet": (
        "XLNetForSequenceClassification",
        {"vocab_size": 100, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
        (2, 7),
        dict.fromkeys((*BLOCK, "position_scores"), 2),
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        {
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 16, 16, 24, 32, 32, 64],
            "image_size": 64,
            "num_attention_heads": 2,
        },
        LARGE,
        dict.fromkeys(BLOCK, 9),
    ),
    "levit": (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "kernel_size": 3,
        },
        LARGE,
        {"query_key_value": 3, "key_value": 2, "query": 2, "ffn_up": 5},
    ),
    "audio_spectrogram": (
        "ASTForAudioClassification",
        {**SMALL, "max_length": 64, "num_mel_bins": 32},
        (2, 64, 32),
        {**dict.fromkeys(BLOCK, 1), "patch_embedding": 1},
    ),
    "wav2vec2": (
        "Wav2Vec2ForSequenceClassification",
        {
            **SMALL,
            "conv_dim": (8, 8, 8),
            "conv_kernel": (10, 3, 3),
            "conv_stride": (5, 2, 2),
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 16,
        },
        (2, 2000),
        dict.fromkeys(BLOCK, 1),
    ),
    "squeezebert": (
        "SqueezeBertForSequenceClassification",
        {
            **SMALL,
            "vocab_size": 100,
            "embedding_size": 16,
            **dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 2),
        },
        (2, 7),
        {**dict.fromkeys(BLOCK, 1), "pooler": 1, "classifier": 1},
    ),
}


@cache
def exported(family: str, dynamo: bool, folder: Path) -> tuple[Path, np.ndarray]:
    name, settings, shape, _ = FAMILIES[family]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings)).eval()
    if family == "whisper_encoder":
        model = model.encoder
    tokens = len(shape) == 2 and family != "wav2vec2"
    example = torch.randint(0, 99, shape) if tokens else torch.randn(shape)

    class Result(torch.nn.Module):
        """The first result of the model, of its first input."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)[0]

    path = folder / f"{family}-{'dynamo' if dynamo else 'torchscript'}.onnx"
    how = (
        {"dynamo": True, "verbose": False, "dynamic_shapes": {"x": {0: torch.export.Dim("batch")}}}
        if dynamo
        else {"dynamo": False, "opset_version": 17, "dynamic_axes": {"x": {0: "batch"}}}
    )
    with torch.no_grad():
        torch.onnx.export(Result().eval(), (example,), path, input_names=["x"], external_data=False, **how)
    return path, example.numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_product_of_a_family_is_a_site_and_equal(family, dynamo, tmp_path_factory):
    path, x = exported(family, dynamo, tmp_path_factory.getbasetemp())
    clean = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    ideal = rewrite(path, device="ideal")
    assert ideal.manifest.digital_share == 0
    found = Counter(site.component for site in ideal.manifest.sites)
    assert {name: found[name] for name in FAMILIES[family][3]} == FAMILIES[family][3]
    result = session(ideal).run(None, {"x": x})[0]
    np.testing.assert_allclose(result, clean, atol=1e-5 * max(1.0, np.abs(clean).max()))
    noisy = session(rewrite(path, device="rram_adc"))
    whole = noisy.run(None, {"x": x})[0]
    assert not np.allclose(whole, clean, rtol=1e-4, atol=1e-6 * np.abs(clean).max())
    halves = [noisy.run(None, {"x": x[i : i + 1], "emu.sample": np.int64(i)})[0] for i in range(len(x))]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-4 * max(1.0, np.abs(whole).max()))
