"""A PyTorch model becomes an ONNX file that computes the same and that emu can rewrite."""

import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner, Result

import emu
from emu.cli import app
from emu.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'train'")

from emu.train import exporting
from emu.train.exporting import example_inputs, export, onnx_of

IMAGES = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 12, "num_labels": 3}
ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.3}
TEXTS = {"vocab_size": 40, "hidden_size": 12, "max_position_embeddings": 16}
BLOCK = ["attention_context", "attention_output", "attention_scores", "ffn_down", "ffn_up", "key", "query", "value"]
DECODER_BLOCK = ["attention_context", "attention_output", "attention_scores", "ffn_down", "ffn_up", "query_key_value"]


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES, **ENCODER))


def deit(kind: str = "DeiTForImageClassification") -> Any:
    return getattr(transformers, kind)(transformers.DeiTConfig(**IMAGES, **ENCODER))


def deit_with_teacher() -> Any:
    return deit("DeiTForImageClassificationWithTeacher")


def swin() -> Any:
    shape = {"image_size": 16, "patch_size": 2, "window_size": 4, "num_labels": 3, "initializer_range": 0.3}
    return transformers.SwinForImageClassification(
        transformers.SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[2, 4], **shape)
    )


def bert(kind: str = "BertForSequenceClassification", **settings: Any) -> Any:
    return getattr(transformers, kind)(transformers.BertConfig(**TEXTS, **ENCODER, **settings))


def bert_qa() -> Any:
    return bert("BertForQuestionAnswering")


def distilbert() -> Any:
    shape = {"dim": 12, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "initializer_range": 0.3}
    config = transformers.DistilBertConfig(vocab_size=40, max_position_embeddings=16, **shape)
    return transformers.DistilBertForSequenceClassification(config)


def gpt2() -> Any:
    shape = {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, **shape))


LONG_TEXT = {"input_ids": torch.arange(2 * 8).reshape(2, 8)}


class DividedByLength(torch.nn.Module):
    """A trace takes the length for a constant."""

    def forward(self, input_ids: Any) -> Any:
        return input_ids.float() / len(input_ids[0])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def tracing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exporter that is tried after it, which takes seconds."""

    def fail(*_: Any) -> None:
        raise InputError("not tried")

    monkeypatch.setattr(exporting, "_from_torch_export", fail)


def components_of(model: onnx.ModelProto | Path) -> dict[str, int]:
    return dict(Counter(site.component for site in emu.rewrite(model, "ideal").manifest.sites))


def computed(model: onnx.ModelProto | Path, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: each.numpy() for name, each in inputs.items()}), strict=True))


def texts(model: Any, batch: int, tokens: int) -> dict[str, Any]:
    """Random texts that are none of the exporter's examples."""
    random = torch.Generator().manual_seed(1)
    shape = (batch, tokens)
    inputs = {"input_ids": torch.randint(0, 40, shape, generator=random)}
    inputs["attention_mask"] = (torch.arange(tokens) < torch.arange(2, 2 + batch)[:, None]).long()
    if "token_type_ids" in example_inputs(model):
        inputs["token_type_ids"] = torch.randint(0, 2, shape, generator=random)
    return inputs


def shape_of(proto: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in (*proto.graph.input, *proto.graph.output)
    }


class TestGraph:
    """onnx_of"""

    @pytest.mark.parametrize(
        ("make", "more"),
        [
            (vit, {"patch_embedding": 1, "classifier": 1}),
            (deit, {"patch_embedding": 1, "classifier": 1}),
            (deit_with_teacher, {"patch_embedding": 1, "classifier": 2}),
            (swin, {"patch_embedding": 1, "classifier": 1, "other": 1}),
            (bert, {"pooler": 1, "classifier": 1}),
            (bert_qa, {"classifier": 1}),
            (distilbert, {"pooler": 1, "classifier": 1}),
        ],
    )
    def test_every_matrix_product_is_found(self, make: Any, more: dict[str, int]) -> None:
        model = make()
        assert components_of(onnx_of(model, example_inputs(model))) == {**dict.fromkeys(BLOCK, 2), **more}

    def test_nodes_are_named_after_modules(self) -> None:
        model = vit()
        sites = emu.rewrite(onnx_of(model, example_inputs(model)), "ideal").manifest.sites
        assert "/vit/encoder/layer.1/attention/attention/query/MatMul" in [site.node for site in sites]

    def test_any_batch_is_computed_as_by_pytorch(self) -> None:
        model = deit_with_teacher().eval()
        pixels = torch.randn(7, 1, 8, 8)
        logits = computed(onnx_of(model, example_inputs(model)), {"pixel_values": pixels})
        with torch.no_grad():
            expected = model(pixels)
        for name in ("logits", "cls_logits", "distillation_logits"):
            np.testing.assert_allclose(logits[name], expected[name].numpy(), atol=1e-5)
        np.testing.assert_allclose(
            logits["logits"], (logits["cls_logits"] + logits["distillation_logits"]) / 2, atol=1e-5
        )

    @pytest.mark.parametrize("make", [bert, bert_qa, distilbert])
    @pytest.mark.parametrize("tokens", [1, 13])
    def test_any_length_of_text_is_computed_as_by_pytorch(self, make: Any, tokens: int) -> None:
        model = make().eval()
        inputs = texts(model, 4, tokens)
        with torch.no_grad():
            expected = model(**inputs)
        for name, array in computed(onnx_of(model, example_inputs(model)), inputs).items():
            np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-5)

    def test_free_axes_have_names_and_sizes_are_fixed(self) -> None:
        images, answers = vit(), bert_qa()
        assert shape_of(onnx_of(images, example_inputs(images))) == {
            "pixel_values": ["batch", 1, 8, 8],
            "logits": ["batch", 3],
        }
        shapes = shape_of(onnx_of(answers, example_inputs(answers)))
        assert list(shapes) == ["input_ids", "attention_mask", "token_type_ids", "start_logits", "end_logits"]
        assert all(shape == ["batch", "sequence"] for shape in shapes.values())

    def test_axes_can_be_fixed(self) -> None:
        model = vit()
        proto = onnx_of(model, example_inputs(model), dynamic={})
        assert shape_of(proto) == {"pixel_values": [2, 1, 8, 8], "logits": [2, 3]}

    def test_inputs_take_the_order_of_forward_whatever_that_of_the_example(self) -> None:
        class Difference(torch.nn.Module):
            def forward(self, left: Any, right: Any) -> Any:
                return left - right

        one, two = torch.ones(2, 3), torch.full((2, 3), 2.0)
        result = computed(onnx_of(Difference(), {"right": two, "left": one}), {"left": one, "right": two})
        np.testing.assert_array_equal(result["output"], -np.ones((2, 3)))

    def test_outputs_of_a_plain_module_can_be_named_and_those_of_a_dictionary_chosen(self) -> None:
        class Heads(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return {"twice": 2 * x, "nothing": None, "more": x + 1}

        x = torch.ones(2, 3)
        assert list(computed(onnx_of(torch.nn.Linear(3, 4), {"input": x}), {"input": x})) == ["output"]
        assert list(computed(onnx_of(torch.nn.Linear(3, 4), {"input": x}, outputs=["scores"]), {"input": x})) == [
            "scores"
        ]
        assert list(computed(onnx_of(Heads(), {"x": x}), {"x": x})) == ["twice", "more"]
        more = computed(onnx_of(Heads(), {"x": x}, outputs=["more"]), {"x": x})
        assert list(more) == ["more"] and (more["more"] == 2).all()

    def test_a_model_may_give_fewer_outputs_in_an_export(self) -> None:
        class Training(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                only = {"logits": 2 * x}
                return only if torch.onnx.is_in_onnx_export() else {"hidden": x, **only}

        x = torch.ones(2, 3)
        result = computed(onnx_of(Training(), {"x": x}), {"x": x})
        assert list(result) == ["logits"] and (result["logits"] == 2).all()

    def test_the_model_is_left_as_it_was(self) -> None:
        model = gpt2()
        model.train()
        model.transformer.drop.eval()
        before = {name: each.training for name, each in model.named_modules()}
        level = logging.root.manager.disable
        with pytest.raises(InputError, match="fails on inputs of input_ids"):
            onnx_of(model, {"input_ids": torch.full((2, 3), 99)})
        assert {name: each.training for name, each in model.named_modules()} == before
        assert model.config.use_cache and "forward" not in vars(model) and logging.root.manager.disable == level
        images = vit().train()
        proto = onnx_of(images, example_inputs(images))
        assert images.training and "forward" not in vars(images)
        assert not any(node.op_type == "Dropout" for node in proto.graph.node)

    def test_the_same_weights_give_the_same_bytes_without_a_trace_of_the_machine(self) -> None:
        models = [vit() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        first, second = (onnx_of(model, example_inputs(model)).SerializeToString() for model in models)
        assert first == second
        assert b".py" not in first and str(Path.home()).encode() not in first

    @pytest.mark.parametrize(
        ("example", "options", "message"),
        [
            ({}, {}, "the example is empty"),
            ({"pixels": torch.ones(2, 3)}, {}, "takes no input 'pixels': its inputs are input"),
            ({"input": torch.ones(2, 5)}, {}, r"fails on inputs of input \[2, 5\]"),
            ({"input": torch.ones(2, 3)}, {"opset": 13}, "opset is 13: choose 14 to 23"),
        ],
    )
    def test_what_does_not_fit_is_named(self, example: Any, options: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            onnx_of(torch.nn.Linear(3, 4), example, **options)

    def test_an_operator_that_onnx_lacks_is_named_and_nothing_is_printed(self, capfd: pytest.CaptureFixture) -> None:
        class Singular(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return torch.linalg.svd(x)[1]

        with pytest.raises(InputError, match=r"aten::linalg_svd.*torch\.export fails"):
            onnx_of(Singular(), {"x": torch.randn(2, 3, 4)})
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_a_decoder_that_cannot_be_traced_is_exported_by_torch_export_with_the_same_names(self) -> None:
        model = gpt2().eval()
        proto = onnx_of(model, example_inputs(model))
        again = onnx_of(model, example_inputs(model))
        assert proto.SerializeToString() == again.SerializeToString()
        assert components_of(proto) == {**dict.fromkeys(DECODER_BLOCK, 2), "classifier": 1}
        assert "/transformer/h.1/attn/c_attn/Gemm" in [node.name for node in proto.graph.node]
        assert shape_of(proto)["logits"] == ["batch", "sequence", 40]
        inputs = texts(model, 5, 11)
        with torch.no_grad():
            expected = model(**inputs, use_cache=False).logits
        np.testing.assert_allclose(computed(proto, inputs)["logits"], expected.numpy(), atol=1e-5)


class TestExamples:
    """example_inputs"""

    def test_images_have_the_size_of_the_configuration(self) -> None:
        assert {name: list(each.shape) for name, each in example_inputs(vit()).items()} == {
            "pixel_values": [2, 1, 8, 8]
        }

    def test_texts_have_what_the_model_takes_and_one_is_padded(self) -> None:
        inputs = example_inputs(bert())
        assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
        assert inputs["input_ids"].max() < 40 and inputs["attention_mask"].sum(dim=1).tolist() == [8, 3]
        assert list(example_inputs(distilbert())) == ["input_ids", "attention_mask"]
        assert list(example_inputs(bert(type_vocab_size=1))) == ["input_ids", "attention_mask"]

    def test_other_models_need_an_example(self) -> None:
        with pytest.raises(InputError, match="Linear is no model of transformers: give an example"):
            example_inputs(torch.nn.Linear(3, 4))
        config = transformers.T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        with pytest.raises(InputError, match=r"takes input_ids, .*decoder_input_ids.* give an example"):
            example_inputs(transformers.T5ForConditionalGeneration(config))


class TestExport:
    """export: proof, files"""

    def test_what_was_written_is_said(self, tmp_path: Path) -> None:
        result = export(vit(), tmp_path / "model.onnx")
        assert result.inputs == {"pixel_values": ("batch", 1, 8, 8)} and result.outputs == {"logits": ("batch", 3)}
        assert 0 < result.largest_difference < 1e-5 and (result.exporter, result.opset) == ("torch", 17)
        assert result.size_bytes == (tmp_path / "model.onnx").stat().st_size and result.copied == ()
        assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
        assert components_of(tmp_path / "model.onnx")["query"] == 2

    @pytest.mark.usefixtures("tracing_alone")
    def test_a_graph_that_is_wrong_for_some_batch_is_not_written(self, tmp_path: Path) -> None:
        class Batches(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return x * 2 if x.shape[0] < 3 else x * 3  # a trace knows one branch

        with pytest.raises(InputError, match="differ by .*; nothing was written"):
            export(Batches(), tmp_path / "model.onnx", exporter="torch", example={"x": torch.ones(2, 3)})
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("tracing_alone")
    def test_a_graph_that_is_wrong_for_some_length_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="nothing was written"):
            export(DividedByLength(), tmp_path / "model.onnx", exporter="torch", example=LONG_TEXT)
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_torch_export_takes_over_where_a_trace_is_wrong(self, tmp_path: Path) -> None:
        export(DividedByLength(), tmp_path / "model.onnx", exporter="torch", example=LONG_TEXT)
        inputs = {"input_ids": torch.arange(12).reshape(1, 12)}
        np.testing.assert_allclose(computed(tmp_path / "model.onnx", inputs)["output"][0], np.arange(12) / 12)

    @pytest.mark.usefixtures("tracing_alone")
    def test_the_tolerance_is_a_share_of_the_output(self, tmp_path: Path) -> None:
        class Scaled(torch.nn.Module):
            def __init__(self, factor: float) -> None:
                super().__init__()
                self.model, self.factor = vit(), factor

            def forward(self, pixel_values: Any) -> Any:
                return self.model(pixel_values).logits * self.factor

        example = example_inputs(vit())
        differences = []
        for factor in (1e-6, 1e6):
            torch.manual_seed(0)
            result = export(Scaled(factor), tmp_path / "model.onnx", example=example, overwrite=True)
            differences.append(result.largest_difference)
        assert differences[0] == pytest.approx(differences[1], rel=0.5) and differences[0] > 0
        with pytest.raises(InputError, match="more than the 0e"):
            export(vit(), tmp_path / "strict.onnx", exporter="torch", tolerance=0)
        assert not (tmp_path / "strict.onnx").exists()

    @pytest.mark.usefixtures("tracing_alone")
    def test_weights_that_are_no_numbers_are_refused(self, tmp_path: Path) -> None:
        model = vit()
        model.classifier.bias.data[0] = float("nan")
        with pytest.raises(InputError, match="differ by inf"):
            export(model, tmp_path / "model.onnx", exporter="torch")

    def test_large_tensors_go_to_a_file_beside_the_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = vit()
        whole = export(model, tmp_path / "whole.onnx")
        monkeypatch.setattr(exporting, "_LARGEST_FILE_BYTES", 1000)
        result = export(model, tmp_path / "model.onnx")
        assert {each.name for each in tmp_path.iterdir()} == {"whole.onnx", "model.onnx", "model.onnx.data"}
        assert result.size_bytes == sum((tmp_path / f"model.onnx{more}").stat().st_size for more in ("", ".data"))
        assert (tmp_path / "model.onnx").stat().st_size < whole.size_bytes
        pixels = {"pixel_values": torch.randn(3, 1, 8, 8)}
        logits = [computed(tmp_path / name, pixels)["logits"] for name in ("whole.onnx", "model.onnx")]
        np.testing.assert_array_equal(*logits)
        assert components_of(tmp_path / "model.onnx") == components_of(tmp_path / "whole.onnx")
        (tmp_path / "model.onnx").unlink()
        with pytest.raises(InputError, match=r"model\.onnx\.data exists already"):
            export(model, tmp_path / "model.onnx")

    def test_files_are_replaced_when_asked_only(self, tmp_path: Path) -> None:
        target = tmp_path / "model.onnx"
        target.write_text("mine")
        with pytest.raises(InputError, match=r"model\.onnx exists already: .*--overwrite"):
            export(vit(), target)
        assert target.read_text() == "mine"
        export(vit(), target, overwrite=True)
        assert components_of(target)

    def test_the_processor_goes_with_the_model(self, tmp_path: Path) -> None:
        folder, target = tmp_path / "vit", tmp_path / "out"
        vit().save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
        (folder / "notes.txt").write_text("not the model's")
        target.mkdir()
        result = export(folder, target / "model.onnx")
        assert result.copied == ("config.json", "preprocessor_config.json")
        assert {each.name for each in target.iterdir()} == {"model.onnx", *result.copied}
        for name in result.copied:
            assert (target / name).read_bytes() == (folder / name).read_bytes()
        assert export(folder, target / "again.onnx").copied == (), "equal files are no conflict"
        before = {each.name for each in folder.iterdir()}
        assert export(folder, folder / "model.onnx").copied == ()
        assert {each.name for each in folder.iterdir()} == before | {"model.onnx"}

    def test_files_of_another_model_are_not_replaced(self, tmp_path: Path) -> None:
        folder, target = tmp_path / "vit", tmp_path / "out"
        vit().save_pretrained(folder)
        target.mkdir()
        (target / "config.json").write_text("{}")
        with pytest.raises(InputError, match=r"config\.json exists already and is not that of .*--overwrite"):
            export(folder, target / "model.onnx")
        assert [each.name for each in target.iterdir()] == ["config.json"]
        export(folder, target / "model.onnx", overwrite=True)
        assert (target / "config.json").read_bytes() == (folder / "config.json").read_bytes()

    def test_a_folder_gives_what_its_model_gives(self, tmp_path: Path) -> None:
        model = bert()
        model.save_pretrained(tmp_path / "bert")
        export(model, tmp_path / "one.onnx")
        export(tmp_path / "bert", tmp_path / "two.onnx")
        assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()

    def test_the_task_chooses_the_model(self, tmp_path: Path) -> None:
        bert().save_pretrained(tmp_path / "bert")
        result = export(tmp_path / "bert", tmp_path / "model.onnx", task="feature-extraction")
        assert list(result.outputs) == ["last_hidden_state", "pooler_output"]
        with pytest.raises(InputError, match="lacks 2 tensors of a BertForQuestionAnswering, such as qa_outputs"):
            export(tmp_path / "bert", tmp_path / "qa.onnx", task="question-answering")

    def test_a_model_of_emus_own_is_known_by_its_configuration(self, tmp_path: Path) -> None:
        from emu.train.cdeit import CDeiTConfig, CDeiTForImageClassification

        CDeiTForImageClassification(CDeiTConfig(**IMAGES, **ENCODER)).save_pretrained(tmp_path / "cdeit")
        assert json.loads((tmp_path / "cdeit" / "config.json").read_text())["model_type"] == "cdeit"
        result = export(tmp_path / "cdeit", tmp_path / "model.onnx")
        assert result.outputs["logits"] == ("batch", 3) and components_of(tmp_path / "model.onnx")["query"] == 2


class TestOptimum:
    """The exporter of optimum"""

    @pytest.fixture(autouse=True)
    def _optimum(self) -> None:
        pytest.importorskip("optimum.exporters.onnx", reason="needs optimum-onnx")

    def test_it_takes_over_where_tracing_fails(self, tmp_path: Path) -> None:
        model = gpt2()
        result = export(model, tmp_path / "model.onnx")
        assert result.exporter == "optimum" and result.outputs == {"logits": ("batch", "sequence", 40)}
        assert components_of(tmp_path / "model.onnx") == {**dict.fromkeys(DECODER_BLOCK, 2), "classifier": 1}
        inputs = texts(model, 5, 11)
        inputs["position_ids"] = torch.arange(11).expand(5, -1)
        with torch.no_grad():
            expected = model.eval()(**inputs).logits
        np.testing.assert_allclose(computed(tmp_path / "model.onnx", inputs)["logits"], expected.numpy(), atol=1e-5)
        assert model.config.use_cache

    @pytest.mark.parametrize("make", [deit_with_teacher, bert_qa])
    def test_its_graphs_have_the_same_sites_and_sizes(self, make: Any, tmp_path: Path) -> None:
        model = make()
        results = [export(model, tmp_path / name, exporter=name) for name in ("optimum", "torch")]
        assert [result.exporter for result in results] == ["optimum", "torch"]
        assert results[0].inputs == results[1].inputs
        assert components_of(tmp_path / "optimum") == components_of(tmp_path / "torch")
        again = export(model, tmp_path / "again", exporter="optimum")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "optimum").read_bytes() and again.opset == 17


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestCommand:
    """emu export"""

    def test_a_model_goes_from_its_folder_to_the_chip(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        model = vit().eval()
        model.config.label2id, model.config.id2label = {"a": 0, "b": 1, "c": 2}, {0: "a", 1: "b", 2: "c"}
        model.config.num_channels = 1
        model.save_pretrained(tmp_path / "vit")
        (tmp_path / "vit" / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "ViTImageProcessor", "do_resize": False, "image_mean": [0.5]}).replace(
                "[0.5]", '[0.5], "image_std": [0.5]'
            )
        )
        (tmp_path / "out").mkdir()
        target = tmp_path / "out" / "vit.onnx"
        exported = command("export", tmp_path / "vit", "-o", target)
        assert exported.exit_code == 0, exported.stderr
        lines = exported.stdout.splitlines()
        assert lines[0] == "inputs   pixel_values batchx1x8x8" and lines[1] == "outputs  logits batchx3"
        assert lines[2].startswith("parity   onnxruntime and PyTorch differ by")
        assert lines[3:5] == ["graph    by torch, opset 17", "copied   config.json, preprocessor_config.json"]
        assert lines[5].startswith(f"Wrote {target}, 0.0")

        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
        for number, label in enumerate("abcabc"):
            (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels[number]).save(tmp_path / "images" / label / f"{number}.png")
        with torch.no_grad():
            inputs = torch.from_numpy(pixels[:, None] / np.float32(127.5) - 1)
            logits = model(inputs).logits.numpy()
        measured = command("evaluate", target, "--data", tmp_path / "images", "--json")
        accuracy = json.loads(measured.stdout)["clean"]["accuracy"]
        assert accuracy == pytest.approx((logits.argmax(axis=1) == np.arange(6) % 3).mean())

        assert command("rewrite", target, "--device", "ideal", "-o", tmp_path / "chip.onnx").exit_code == 0
        np.savez(tmp_path / "in.npz", pixel_values=inputs.numpy())
        ran = command("run", tmp_path / "chip.onnx", "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
        assert ran.exit_code == 0, ran.stderr
        with np.load(tmp_path / "out.npz") as outputs:
            np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)

    def test_its_facts_come_as_json_too(self, tmp_path: Path) -> None:
        distilbert().save_pretrained(tmp_path / "bert")
        report = json.loads(command("export", tmp_path / "bert", "-o", tmp_path / "b.onnx", "--json").stdout)
        assert report["path"] == str(tmp_path / "b.onnx") and report["copied"] == ["config.json"]
        assert report["inputs"] == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}

    @pytest.mark.parametrize(
        ("files", "more", "message"),
        [
            (None, [], "There is no folder"),
            ({}, [], "has no config.json"),
            ({"config.json": "{"}, [], "config.json cannot be read"),
            ({"config.json": "[]"}, [], "holds no configuration"),
            ({"config.json": "{}"}, [], "model.safetensors is missing"),
            ({"config.json": "{}", "pytorch_model.bin": ""}, [], "pytorch_model.bin, a pickle"),
            ({"config.json": "{}", "model.safetensors": ""}, [], "names no architecture"),
            ({"config.json": '{"architectures": ["Foo"]}', "model.safetensors": ""}, [], "architecture Foo, which"),
            ({"config.json": "{}", "model.safetensors": ""}, ["--task", "sing"], "There is no task 'sing'"),
            (
                {"config.json": '{"architectures": ["ViTModel"], "model_type": "vit"}', "model.safetensors": "cut"},
                [],
                "cannot be loaded",
            ),
        ],
    )
    def test_a_folder_that_holds_no_model_is_refused_in_one_sentence(
        self, tmp_path: Path, files: dict[str, str] | None, more: list[str], message: str
    ) -> None:
        folder, target = tmp_path / "model", tmp_path / "out" / "model.onnx"
        target.parent.mkdir()
        for name, text in (files or {}).items():
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        if files == {}:
            folder.mkdir()
        result = command("export", folder, "-o", target, *more)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
        assert not list(target.parent.iterdir())

    def test_a_target_that_cannot_be_is_refused(self, tmp_path: Path) -> None:
        missing = command("export", tmp_path, "-o", tmp_path / "no" / "model.onnx")
        folder = command("export", tmp_path, "-o", tmp_path)
        (tmp_path / "config.json").write_text("{}")
        file = command("export", tmp_path / "config.json", "-o", tmp_path / "model.onnx")
        for result, message in ((missing, "There is no folder"), (folder, "is a folder"), (file, "is a file")):
            assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1

    @pytest.mark.parametrize("absent", ["torch", "transformers"])
    def test_a_missing_library_is_asked_for(self, absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, absent, None)
        result = command("export", tmp_path, "-o", tmp_path / "model.onnx")
        assert result.exit_code == 2 and f'needs {absent}: pip install "emu-onnx[train]"' in result.stderr
