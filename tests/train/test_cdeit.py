"""CDeiT: its tokens, its three strategies, where it starts from, and what becomes of it in ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'train'")

import emu
from emu.errors import InputError
from emu.train.cdeit import CDeiTConfig, CDeiTForImageClassification, add_stochastic_depth
from emu.train.exporting import onnx_of
from emu.train.losses import cdeit_hard_loss, cdeit_soft_loss

STRATEGIES = ("average", "linear", "gelu")
SHAPE = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 5,
    "initializer_range": 0.1,
}
CLASSES, KINDS = 5, 3


def cdeit(inference: str = "linear", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = CDeiTConfig(inference=inference, corruptions=KINDS, **{**SHAPE, **settings})
    return CDeiTForImageClassification(config).eval()


def other(name: str, **settings: Any) -> Any:
    """A model of transformers, every weight of which is random and not zero."""
    torch.manual_seed(1)
    config = transformers.ViTConfig if name.startswith("ViT") else transformers.DeiTConfig
    model = getattr(transformers, name)(config(**{**SHAPE, **settings}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def images() -> Any:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))


class TestTokens:
    def test_class_then_distillation_then_corruption_then_patches(self, images: Any) -> None:
        model = cdeit()
        first = model(images, output_hidden_states=True).hidden_states[0]
        embeddings = model.deit.embeddings
        patches = embeddings.patch_embeddings(images) + embeddings.position_embeddings[:, 2:]
        assert first.shape == (4, 3 + 16, 16)
        assert torch.equal(first[0, 0], (embeddings.cls_token + embeddings.position_embeddings[:, 0])[0, 0])
        assert torch.equal(first[0, 1], (embeddings.distillation_token + embeddings.position_embeddings[:, 1])[0, 0])
        assert torch.equal(first[0, 2], embeddings.corruption_token[0, 0])
        assert torch.equal(first[:, 3:], patches)

    def test_a_new_models_tokens_are_random_and_apart(self) -> None:
        embeddings = cdeit().deit.embeddings
        tokens = torch.cat([embeddings.cls_token, embeddings.distillation_token, embeddings.corruption_token], dim=1)[0]
        assert (tokens != 0).all() and len({tuple(each) for each in tokens.tolist()}) == 3

    def test_each_head_reads_its_own_token(self, images: Any) -> None:
        model = cdeit()
        outputs = model(images, output_hidden_states=True, output_token_logits=True)
        last = model.deit.layernorm(outputs.hidden_states[-1])
        for i, (head, logits) in enumerate(
            [
                (model.cls_classifier, outputs.cls_logits),
                (model.distillation_classifier, outputs.distillation_logits),
                (model.corruption_classifier, outputs.corruption_logits),
            ]
        ):
            torch.testing.assert_close(logits, head(last[:, i]))
        assert outputs.corruption_logits.shape == (4, KINDS + 1), "one more for clean images"


class TestStrategies:
    def test_average_is_that_of_two_tokens(self, images: Any) -> None:
        outputs = cdeit("average")(images, output_token_logits=True)
        torch.testing.assert_close(outputs.logits, (outputs.cls_logits + outputs.distillation_logits) / 2)
        assert outputs.adjustment_logits is None

    def test_linear_averages_three_logits(self, images: Any) -> None:
        model = cdeit("linear")
        outputs = model(images, output_token_logits=True)
        layer = model.corruption_adjustment
        adjustment = outputs.corruption_logits @ layer.weight.T + layer.bias
        torch.testing.assert_close(outputs.adjustment_logits, adjustment)
        torch.testing.assert_close(outputs.logits, (outputs.cls_logits + outputs.distillation_logits + adjustment) / 3)

    def test_gelu_has_two_layers_before_the_average(self, images: Any) -> None:
        model = cdeit("gelu", adjustment_size=7)
        outputs = model(images, output_token_logits=True)
        first, _, second = model.corruption_adjustment
        assert first.weight.shape == (7, KINDS + 1) and second.weight.shape == (CLASSES, 7)
        adjustment = second(torch.nn.functional.gelu(first(outputs.corruption_logits)))
        torch.testing.assert_close(outputs.logits, (outputs.cls_logits + outputs.distillation_logits + adjustment) / 3)

    @pytest.mark.parametrize("loss_of", [cdeit_hard_loss, cdeit_soft_loss])
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_training_reaches_every_weight(self, images: Any, strategy: str, loss_of: Any) -> None:
        model = cdeit(strategy).train()
        outputs = model(images)
        loss = loss_of(
            outputs.cls_logits,
            outputs.distillation_logits,
            outputs.corruption_logits,
            torch.randn(4, CLASSES),
            torch.tensor([0, 1, 2, 3]),
            torch.tensor([0, 1, 2, 3]),
            adjustment_logits=outputs.adjustment_logits,
        )
        loss.total.backward()
        unmoved = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
        assert not unmoved

    def test_evaluation_gives_the_answer_alone_and_it_comes_first(self, images: Any) -> None:
        model = cdeit()
        assert list(model(images)) == ["logits"]
        assert next(iter(model.train()(images))) == "logits"
        (logits,) = model.eval()(images, return_dict=False)
        assert torch.equal(logits, model(images).logits)

    def test_labels_give_a_cross_entropy(self, images: Any) -> None:
        outputs = cdeit()(images, labels=torch.tensor([0, 1, 2, 3]))
        expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1, 2, 3]))
        torch.testing.assert_close(outputs.loss, expected)


class TestFiles:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_transformers_loads_what_was_saved(self, images: Any, strategy: str, tmp_path: Path) -> None:
        model = cdeit(strategy, drop_path_rate=0.2)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        loaded, report = transformers.AutoModelForImageClassification.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert isinstance(loaded, CDeiTForImageClassification)
        assert not any(report.values())
        assert loaded.config.inference == strategy and loaded.config.corruptions == KINDS
        assert torch.equal(loaded(images).logits, model(images).logits)
        assert transformers.AutoConfig.from_pretrained(tmp_path).drop_path_rate == 0.2


@pytest.fixture(scope="module")
def blocks_of_a_deit() -> Any:
    pixels = {"pixel_values": torch.zeros(2, 1, 8, 8)}
    sites = emu.find_sites(onnx_of(other("DeiTForImageClassificationWithTeacher", num_hidden_layers=2), pixels))
    return [(site.layer, site.component) for site in sites if site.layer is not None]


class TestOnnx:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_every_product_is_found_as_in_a_deit(self, images: Any, strategy: str, blocks_of_a_deit: Any) -> None:
        model = cdeit(strategy, num_hidden_layers=2)
        graph = onnx_of(model, {"pixel_values": images})
        assert [output.name for output in graph.graph.output] == ["logits"]
        rewritten = emu.rewrite(graph, device="ideal")
        sites = rewritten.manifest.sites
        assert len(blocks_of_a_deit) == 2 * 8
        found = [(site.layer, site.component) for site in sites]
        assert [site for site in found if site[0] is not None] == blocks_of_a_deit
        outside = [component for layer, component in found if layer is None]
        assert outside[0] == "patch_embedding" and "other" not in outside
        # Two heads; the corruption head only where the answer depends on it, and what adjusts the class.
        assert len(outside) == 1 + {"average": 2, "linear": 4, "gelu": 5}[strategy]
        (logits,) = emu.session(rewritten, threads=1).run(None, {"pixel_values": images.numpy()})
        np.testing.assert_allclose(logits, model(images).logits.detach().numpy(), atol=1e-5)


class TestStartingFromADeiT:
    def test_a_distilled_deit_gives_all_it_has(self) -> None:
        deit = other("DeiTForImageClassificationWithTeacher")
        model = CDeiTForImageClassification.from_deit(deit, inference="gelu", corruptions=KINDS)
        weights = model.state_dict()
        for name, tensor in deit.state_dict().items():
            assert torch.equal(weights[name], tensor), name
        new = {
            name.rpartition(".")[0].partition(".0")[0].partition(".2")[0] for name in weights.keys() - deit.state_dict()
        }
        assert new == {"deit.embeddings", "corruption_classifier", "corruption_adjustment"}
        assert model.config.hidden_size == 16 and not model.training

    @pytest.mark.parametrize("name", ["DeiTForImageClassification", "ViTForImageClassification"])
    def test_one_head_serves_two_tokens(self, name: str) -> None:
        source = other(name)
        model = CDeiTForImageClassification.from_deit(source)
        for head in (model.cls_classifier, model.distillation_classifier):
            assert torch.equal(head.weight, source.classifier.weight)
            assert torch.equal(head.bias, source.classifier.bias)

    @pytest.mark.parametrize("name", ["ViTForImageClassification", "ViTModel"])
    def test_a_vits_class_token_serves_as_distillation_token_too(self, name: str, images: Any) -> None:
        source = other(name)
        model = CDeiTForImageClassification.from_deit(source)
        before = source(images, output_hidden_states=True).hidden_states[0]
        first = model(images, output_hidden_states=True).hidden_states[0]
        assert torch.equal(first[:, 0], before[:, 0]) and torch.equal(first[:, 1], before[:, 0])
        assert torch.equal(first[:, 3:], before[:, 1:])

    def test_a_bare_encoder_gives_its_encoder(self) -> None:
        source = other("DeiTModel")
        model = CDeiTForImageClassification.from_deit(source)
        assert torch.equal(model.deit.encoder.layer[2].output.dense.weight, source.encoder.layer[2].output.dense.weight)

    def test_other_classes_get_new_heads(self) -> None:
        source = other("DeiTForImageClassificationWithTeacher")
        model = CDeiTForImageClassification.from_deit(source, num_labels=7)
        assert model.cls_classifier.weight.shape == (7, 16) and len(model.config.id2label) == 7
        assert torch.equal(model.deit.layernorm.weight, source.deit.layernorm.weight)

    def test_the_source_stays_as_it_is(self, images: Any) -> None:
        source = other("ViTForImageClassification")
        before = source(images).logits
        model = CDeiTForImageClassification.from_deit(source, drop_path_rate=0.5).train()
        for parameter in model.parameters():
            parameter.data.zero_()
        assert torch.equal(source(images).logits, before)

    def test_a_cdeit_may_change_its_strategy(self) -> None:
        first = cdeit("average")
        second = CDeiTForImageClassification.from_deit(first, inference="linear")
        assert torch.equal(second.deit.embeddings.corruption_token, first.deit.embeddings.corruption_token)
        assert torch.equal(second.corruption_classifier.weight, first.corruption_classifier.weight)

    def test_what_cannot_be_a_start_is_said(self) -> None:
        bert = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
        with pytest.raises(InputError, match="not 'bert'"):
            CDeiTForImageClassification.from_deit(transformers.BertModel(bert))
        source = other("DeiTModel")
        for settings in ({"hidden_size": 8}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}, {"patch_size": 4}):
            with pytest.raises(InputError, match="change the encoder's shape"):
                CDeiTForImageClassification.from_deit(source, **settings)


class TestStochasticDepth:
    def test_a_branch_is_skipped_or_scaled_for_whole_samples(self, images: Any) -> None:
        model = cdeit(drop_path_rate=0.5)
        torch.manual_seed(3)
        block = model.deit.encoder.layer[-1]
        hidden = torch.randn(2000, 3, 16)
        branch = block.attention(hidden)
        trained = block.train().attention(hidden)
        skipped = (trained == 0).all(dim=(1, 2))
        assert 0.45 < skipped.float().mean() < 0.55
        torch.testing.assert_close(trained[~skipped], 2 * branch[~skipped])
        unchanged = (block(hidden) == hidden).all(dim=(1, 2))
        assert 0.21 < unchanged.float().mean() < 0.29, "attention and FFN are skipped independently"

    def test_the_rate_rises_from_none_in_the_first_block(self) -> None:
        model = cdeit(drop_path_rate=0.2)
        for block, rate in zip(model.deit.encoder.layer, (None, 0.1, 0.2), strict=True):
            for end in (block.attention.output, block.output):
                assert [each.drop_prob for each in end.modules() if hasattr(each, "drop_prob")] == [rate][
                    : rate is not None
                ]

    @pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassification"])
    def test_it_can_be_added_to_a_model_and_changes_neither_weights_nor_evaluation(
        self, name: str, images: Any
    ) -> None:
        model = other(name)
        before, names = model(images).logits, list(model.state_dict())
        add_stochastic_depth(model, 0.9)
        assert torch.equal(model(images).logits, before) and list(model.state_dict()) == names
        model.train()
        assert not torch.equal(model(images).logits, before)
        add_stochastic_depth(model, 0.0)
        torch.testing.assert_close(model(images).logits, before)

    def test_a_model_without_such_blocks_is_refused(self) -> None:
        with pytest.raises(InputError, match="Linear has no blocks"):
            add_stochastic_depth(torch.nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"inference": "median"}, "inference is 'median': give average, linear or gelu"),
        ({"corruptions": 0}, "corruptions is 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ],
)
def test_a_configuration_out_of_range_is_said(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CDeiTConfig(**settings)
