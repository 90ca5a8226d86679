"""Images and texts reach the model as its own processor or tokenizer makes them, for every task."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emu import Bench, Trial
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import (
    Arrays,
    Classification,
    DataSource,
    MaskedTokens,
    MultipleChoice,
    QuestionAnswering,
    Similarity,
    evaluate,
)
from emu.evaluation.data import ImagesOnDemand, ModelInput, model_inputs
from emu.evaluation.preparing import _Preparation, _space_for, load
from emu.evaluation.sources import Table

from .tiny import ID, WORDS, image_model, save_image_processor, save_tokenizer, token_model

pytest.importorskip("transformers", reason="needs the extra 'data'")
pytest.importorskip("PIL", reason="needs the extra 'data'")

V = len(WORDS)


def ids(text: str) -> list[int]:
    return [ID[word] for word in text.split()]


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        Bench(*arguments, **options).clean  # noqa: B018
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def table(path: Path, records: list[Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


def reds_and_blues(**options: Any) -> onnx.ModelProto:
    """Class 1 for texts with "blue", class 0 for those with "red"."""
    table = np.zeros((V, 2))
    table[ID["red"], 0] = table[ID["blue"], 1] = 1
    return token_model(table, [np.eye(2)], ["logits"], mean=True, **options)


RECORDS = [
    {"text": "the red cat", "label": 0},
    {"text": "the sky is blue", "label": 1},
    {"text": "blue", "label": 1},
    {"text": "red", "label": 1},
]


class TestTexts:
    def test_texts_are_tokenized_and_filled_to_the_longest(self, tmp_path: Path, tokenizer: Path) -> None:
        model = reds_and_blues(extra_inputs=["attention_mask", "token_type_ids"])
        data = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tokenizer)
        bench = Bench(model, data)
        assert bench.task.name == "classification" and bench.clean.accuracy == 0.75
        rows = bench.dataset.arrays["input_ids"]
        assert rows[0].tolist() == ids("[CLS] the red cat [SEP] [PAD]") and rows.shape == (4, 6)
        assert bench.dataset.arrays["attention_mask"].sum(axis=1).tolist() == [5, 6, 3, 3]

    def test_the_tokenizer_beside_the_model_is_found(self, tmp_path: Path) -> None:
        data = table(tmp_path / "set.jsonl", RECORDS)
        assert f"{tmp_path} has no tokenizer.json" in refusal(saved(reds_and_blues(), tmp_path), data)
        save_tokenizer(tmp_path)
        assert Bench(tmp_path / "model.onnx", data).clean.accuracy == 0.75
        in_a_repository = saved(reds_and_blues(), tmp_path / "onnx")
        assert Bench(in_a_repository, data).clean.accuracy == 0.75

    def test_a_tokenizer_file_alone_is_enough(self, tmp_path: Path, tokenizer: Path) -> None:
        (tmp_path / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
        data = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tmp_path)
        assert Bench(reds_and_blues(), data).clean.accuracy == 0.75

    def test_names_of_classes_take_the_order_of_the_model(self, tmp_path: Path, tokenizer: Path) -> None:
        named = [{"text": each["text"], "category": ["warm", "cold"][each["label"]]} for each in RECORDS]
        data = table(tmp_path / "set.jsonl", named)
        sorted_names = Bench(reds_and_blues(), DataSource(data, processor=tokenizer))
        assert sorted_names.dataset.classes == ("cold", "warm") and sorted_names.clean.accuracy == 0.25
        (tmp_path / "order.txt").write_text("warm\ncold\n")
        source = DataSource(data, processor=tokenizer, classes=tmp_path / "order.txt")
        assert Bench(reds_and_blues(), source).clean.accuracy == 0.75
        save_tokenizer(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "bert", "label2id": {"warm": 0, "cold": 1}}')
        assert Bench(saved(reds_and_blues(), tmp_path), data).clean.accuracy == 0.75

    def test_numbers_that_the_data_name_are_translated_to_those_of_the_model(self, tmp_path: Path) -> None:
        """As for MNLI, where data sets and models count the classes differently."""
        save_tokenizer(tmp_path)
        columns = {"text": ["red", "blue", "blue"], "label": [1, 0, 0]}
        rows = Table(columns, 3, "a data set", tmp_path, {"label": ("cold", "warm")})
        inputs = [ModelInput("input_ids", np.dtype("int64"), ("rows", "tokens"))]

        def labels() -> tuple[list[int], tuple[str, ...] | None]:
            source = DataSource("a data set", processor=tmp_path)
            prepared = _Preparation(source, rows, inputs, 3, None).run(Classification(), None)[0]
            return prepared.labels.tolist(), prepared.classes

        assert labels() == ([1, 0, 0], ("cold", "warm"))
        (tmp_path / "config.json").write_text('{"model_type": "bert", "label2id": {"LABEL_0": 0, "LABEL_1": 1}}')
        assert labels() == ([1, 0, 0], ("cold", "warm"))
        (tmp_path / "config.json").write_text('{"model_type": "bert", "label2id": {"warm": 0, "cold": 1}}')
        assert labels() == ([0, 1, 1], ("warm", "cold"))
        columns["label"][2] = -1  # as hidden labels are
        with pytest.raises(InputError, match="Row 3 of a data set has -1 as its label"):
            labels()

    def test_a_class_that_the_list_does_not_have_is_named(self, tmp_path: Path, tokenizer: Path) -> None:
        data = table(tmp_path / "set.jsonl", [{"text": "red", "label": "warm"}])
        (tmp_path / "order.txt").write_text("hot\ncold\n")
        source = DataSource(data, processor=tokenizer, classes=tmp_path / "order.txt")
        message = refusal(reds_and_blues(), source)
        assert "1 of 1 classes" in message and "(warm)" in message and "has hot, cold" in message

    def test_another_number_of_classes_than_the_models_is_refused(self, tmp_path: Path, tokenizer: Path) -> None:
        data = table(tmp_path / "set.jsonl", [{"text": "red", "label": name} for name in ("a", "b", "c")])
        message = refusal(reds_and_blues(), DataSource(data, processor=tokenizer))
        assert "has 3 classes (a, b, c), but the model has 2" in message and "--classes" in message

    def test_samples_do_not_change_the_classes(self, tmp_path: Path, tokenizer: Path) -> None:
        named = [{"text": each["text"], "label": ["warm", "cold"][each["label"]]} for each in RECORDS]
        source = DataSource(table(tmp_path / "set.jsonl", named), processor=tokenizer)
        bench = Bench(reds_and_blues(), source, samples=1)
        assert bench.dataset.labels.tolist() == [1] and bench.dataset.rows == 1
        assert "1 to 4" in refusal(reds_and_blues(), source, samples=5)

    def test_pairs_are_joined_and_columns_can_be_named(self, tmp_path: Path, tokenizer: Path) -> None:
        records = [{"first": "the cat", "second": "sat", "right": 0}]
        names = {"text_column": ["first", "second"], "label_column": "right"}
        source = DataSource(table(tmp_path / "set.jsonl", records), processor=tokenizer, **names)  # type: ignore[arg-type]
        arrays = Bench(reds_and_blues(extra_inputs=["token_type_ids"]), source).dataset.arrays
        assert arrays["input_ids"][0].tolist() == ids("[CLS] the cat [SEP] sat [SEP]")
        assert arrays["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]

    def test_long_texts_are_cut_and_that_is_said(self, tmp_path: Path, tokenizer: Path) -> None:
        source = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tokenizer, max_length=4)
        bench = Bench(reds_and_blues(), source)
        assert bench.dataset.notes == ("2 of 4 texts were cut to 4 tokens.",)
        assert bench.dataset.arrays["input_ids"].shape == (4, 4)

    def test_a_longer_maximum_fills_up(self, tmp_path: Path, tokenizer: Path) -> None:
        source = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tokenizer, max_length=9)
        assert Bench(reds_and_blues(), source).dataset.arrays["input_ids"].shape == (4, 9)

    def test_a_model_of_fixed_length_is_filled_to_it(self, tmp_path: Path, tokenizer: Path) -> None:
        data = table(tmp_path / "set.jsonl", RECORDS)
        bench = Bench(reds_and_blues(length=8), DataSource(data, processor=tokenizer))
        assert bench.dataset.arrays["input_ids"].shape == (4, 8) and bench.clean.accuracy == 0.75
        message = refusal(reds_and_blues(length=8), DataSource(data, processor=tokenizer, max_length=5))
        assert "exactly 8 tokens" in message

    def test_a_model_of_one_input_takes_the_tokens_under_any_name(self, tmp_path: Path, tokenizer: Path) -> None:
        model = reds_and_blues()
        for node in model.graph.node:
            node.input[:] = ["words" if name == "input_ids" else name for name in node.input]
        model.graph.input[0].name = "words"
        source = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tokenizer)
        assert Bench(model, source).clean.accuracy == 0.75

    def test_texts_without_labels_are_compared_with_the_clean_model(self, tmp_path: Path, tokenizer: Path) -> None:
        records = [{"text": each["text"]} for each in RECORDS]
        source = DataSource(table(tmp_path / "set.jsonl", records), processor=tokenizer)
        assert Bench(reds_and_blues(), source).task == Arrays()

    @pytest.mark.parametrize(
        ("record", "options", "says"),
        [
            ({"words": "red", "label": 0}, {}, "no column 'text' (it has 'words', 'label')"),
            ({"text": "red", "label": 0}, {"text_column": "body"}, "no column 'body'"),
            ({"text": "red", "label": 0}, {"label_column": "y"}, "no column 'y'"),
            ({"text": 3, "label": 0}, {}, "Row 1 of"),
            ({"text": "red", "label": None}, {}, "has nothing as its label"),
            ({"text": "red", "label": 0.5}, {}, "has 0.5 as its label"),
            ({"text": "red", "label": -1}, {}, "-1: classes count from 0"),
            ({"text": "red", "label": 2}, {}, "class 2, but the model has 2 classes"),
            ({"text": "red", "label": 0}, {"text_column": ["text", "text", "text"]}, "3 text columns"),
        ],
    )
    def test_tables_that_do_not_fit_are_refused(
        self, tmp_path: Path, tokenizer: Path, record: dict[str, Any], options: dict[str, Any], says: str
    ) -> None:
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer, **options)
        message = refusal(reds_and_blues(), source, task="classification")
        assert says in message and ("set.jsonl" in message or "text columns" in message)

    def test_a_broken_tokenizer_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        source = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tmp_path)
        assert f"The tokenizer of {tmp_path} cannot be loaded" in refusal(reds_and_blues(), source)

    def test_the_fingerprint_changes_with_the_text_and_how_it_is_prepared(
        self, tmp_path: Path, tokenizer: Path
    ) -> None:
        data = table(tmp_path / "set.jsonl", RECORDS)
        sources = [DataSource(data, processor=tokenizer, max_length=length) for length in (None, None, 6, 7)]
        prints = [Bench(reds_and_blues(), source).fingerprint()["data"] for source in sources]
        assert prints[0] == prints[1] == prints[2] != prints[3]


class TestQuestions:
    CONTEXT = "the red dog ran on a mat . the blue cat sat where the sky is ."

    def finder(self) -> onnx.ModelProto:
        """Answers start at "blue" and end at "cat"; it takes no words of the question, where "what" stands."""
        start, end = np.zeros(V), np.zeros(V)
        start[ID["blue"]] = end[ID["cat"]] = 5
        start[ID["what"]] = end[ID["?"]] = 9
        return token_model(np.eye(V), [start, end], ["start_logits", "end_logits"])

    def records(self) -> list[dict[str, Any]]:
        answers = {"text": ["blue cat", "The blue cat"], "answer_start": [30, 26]}
        return [{"question": "what sat ?", "context": self.CONTEXT, "answers": answers}]

    @pytest.mark.parametrize("max_length", [None, 14])
    def test_answers_are_cut_from_the_context_in_whatever_window(
        self, tmp_path: Path, tokenizer: Path, max_length: int | None
    ) -> None:
        data = table(tmp_path / "set.jsonl", self.records())
        bench = Bench(self.finder(), DataSource(data, processor=tokenizer, max_length=max_length))
        assert bench.task == QuestionAnswering() and bench.clean.metrics["exact_match"] == 1
        assert (bench.dataset.rows > 1) == (max_length is not None) and bench.clean.samples == 1
        kept = bench._outputs({}, None)
        assert bench.task.answers(kept, bench.dataset) == ["blue cat"]

    def test_answers_of_a_csv_file_are_texts_or_lists(self, tmp_path: Path, tokenizer: Path) -> None:
        for cell in ("blue cat", '"[""a mat"", ""blue cat""]"'):
            (tmp_path / "set.csv").write_text(f"question,context,answers\nwhat ?,{self.CONTEXT},{cell}\n")
            bench = Bench(self.finder(), DataSource(tmp_path / "set.csv", processor=tokenizer))
            assert bench.clean.metrics["f1"] == 1

    def test_a_question_that_fills_the_window_is_refused(self, tmp_path: Path, tokenizer: Path) -> None:
        source = DataSource(table(tmp_path / "set.jsonl", self.records()), processor=tokenizer, max_length=6)
        assert "leaves no room for a context in 6" in refusal(self.finder(), source)


class TestChoices:
    def after(self, **pairs: str) -> onnx.ModelProto:
        """A language model that expects one word after another: `after(red="cat")`."""
        scores = np.zeros((V, V))
        for word, following in pairs.items():
            scores[ID[{"colon": ":"}.get(word, word)], ID[following]] = 5
        return token_model(np.eye(V), [scores], ["logits"])

    def test_every_choice_is_read_after_the_prompt(self, tmp_path: Path, tokenizer: Path) -> None:
        record = {"question": "what sat ?", "choices": ["a dog", "the cat"], "answer": 1}
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer)
        bench = Bench(self.after(colon="the", the="cat"), source)
        assert bench.task == MultipleChoice() and bench.clean.accuracy == 1
        dataset = bench.dataset
        assert dataset.arrays["input_ids"][1].tolist() == ids("[CLS] Question : what sat ? Answer : the cat [SEP]")
        assert dataset.targets["scored"][1].tolist() == [False] * 8 + [True, True, False]
        assert dataset.targets["characters"].tolist() == [5, 7]

    def test_the_prompt_may_be_made_of_any_columns(self, tmp_path: Path, tokenizer: Path) -> None:
        record = {"start": "the red", "more": "sky", "choices": ["is", "ran"], "label": 0}
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer, prompt="{more} : {start}")
        rows = Bench(self.after(red="is"), source).dataset.arrays["input_ids"]
        assert rows[0].tolist() == ids("[CLS] sky : the red is [SEP]")
        message = refusal(self.after(), DataSource(source.path, processor=tokenizer, prompt="{ending}"))
        assert "no column 'ending'" in message

    @pytest.mark.parametrize(
        ("choices", "answer"),
        [
            ({"text": ["a dog", "the cat"], "label": ["1", "2"]}, "2"),
            ({"text": ["a dog", "the cat"], "label": ["A", "B"]}, "B"),
            (["a dog", "the cat"], "B"),
            (["a dog", "the cat"], "the cat"),
            ('["a dog", "the cat"]', "1"),
        ],
    )
    def test_the_right_choice_is_a_number_a_letter_or_a_text(
        self, tmp_path: Path, tokenizer: Path, choices: Any, answer: Any
    ) -> None:
        record = {"question": "what", "choices": choices, "answerKey": answer}
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer)
        assert Bench(self.after(), source).dataset.labels.tolist() == [1]

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"answer": 2}, "has 2 as the right choice of 2"),
            ({"answer": None}, "has nothing as the right choice"),
            ({"choices": "a, b"}, "has 'a, b' as choices, no list"),
            ({"choices": []}, "as choices, no list"),
        ],
    )
    def test_rows_without_a_right_choice_are_named(
        self, tmp_path: Path, tokenizer: Path, changes: dict[str, Any], says: str
    ) -> None:
        record = {"question": "what", "choices": ["a", "the"], "answer": 0, **changes}
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer)
        assert says in refusal(self.after(), source)

    def test_a_long_prompt_loses_its_beginning(self, tmp_path: Path, tokenizer: Path) -> None:
        record = {"question": "what sat ?", "choices": ["a dog", "the"], "answer": 1}
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer, max_length=4)
        bench = Bench(self.after(colon="the"), source)
        assert bench.dataset.arrays["input_ids"].tolist() == [ids(": a dog [SEP]"), ids("Answer : the [SEP]")]
        assert bench.clean.accuracy == 1
        assert bench.dataset.notes == ("2 of 2 choices were cut to their last 4 tokens.",)

    def test_a_decoder_that_takes_earlier_keys_and_values_gets_none(self, tmp_path: Path, tokenizer: Path) -> None:
        record = {"question": "what sat ?", "choices": ["a dog", "the cat"], "answer": 1}
        source = DataSource(table(tmp_path / "set.jsonl", [record]), processor=tokenizer)
        model = self.after(colon="the", the="cat")
        name, shape = "past_key_values.0.key", ["rows", 2, "past", 8]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        model.graph.output.append(onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, shape))
        model.graph.node.append(onnx.helper.make_node("Identity", [name], ["seen"]))
        bench = Bench(model, source)
        assert bench.clean.accuracy == 1 and bench.dataset.arrays[name].shape == (2, 2, 0, 8)
        assert bench.fingerprint()["data"]


class TestMasking:
    def test_some_tokens_of_each_text_are_masked_always_the_same(self, tmp_path: Path, tokenizer: Path) -> None:
        records = [{"text": "the cat sat on a mat . the dog ran . " * 3}, {"text": "blue"}]
        source = DataSource(table(tmp_path / "set.jsonl", records), processor=tokenizer)
        model = token_model(np.eye(V), [np.eye(V)], ["logits"])
        bench, again = Bench(model, source), Bench(model, source)
        assert bench.task == MaskedTokens() and bench.fingerprint() == again.fingerprint()
        rows, labels = bench.dataset.arrays["input_ids"], bench.dataset.labels
        masked = rows == ID["[MASK]"]
        assert (masked == (labels >= 0)).all() and masked[1].tolist()[:3] == [False, True, False]
        assert 1 <= masked[0].sum() <= 12
        assert np.where(masked, labels, rows)[0, 1:7].tolist() == ids("the cat sat on a mat")

    def test_one_text_does_not_change_what_is_masked_in_another(self, tmp_path: Path, tokenizer: Path) -> None:
        records = [{"text": "the cat sat on a mat . the dog ran ."}, {"text": "a red cat"}]
        model = token_model(np.eye(V), [np.eye(V)], ["logits"])
        source = DataSource(table(tmp_path / "set.jsonl", records), processor=tokenizer)
        one, both = Bench(model, source, samples=1).dataset, Bench(model, source).dataset
        np.testing.assert_array_equal(one.labels[0], both.labels[0])


class TestPairs:
    def test_texts_of_a_pair_are_compared(self, tmp_path: Path, tokenizer: Path) -> None:
        records = [
            {"sentence1": "red cat", "sentence2": "red cat", "score": 5.0},
            {"sentence1": "red cat", "sentence2": "red dog", "score": "3"},
            {"sentence1": "red cat", "sentence2": "blue sky", "score": 0},
        ]
        model = token_model(np.eye(V), [np.eye(V)], ["last_hidden_state"], extra_inputs=["attention_mask"])
        bench = Bench(
            model, DataSource(table(tmp_path / "set.jsonl", records), processor=tokenizer), device="rram", only="*"
        )
        assert bench.task == Similarity() and bench.dataset.rows == 6
        assert bench.clean.metrics["spearman"] == pytest.approx(1)
        assert bench.run(Trial(seed=1)).metrics["output_snr_db"] > 5


class TestImages:
    @pytest.fixture
    def colors(self, tmp_path: Path) -> Path:
        from PIL import Image

        for folder, color in {"0_red": (255, 0, 0), "1_green": (0, 255, 0), "2_blue": (0, 0, 255)}.items():
            (tmp_path / "colors" / folder).mkdir(parents=True)
            Image.new("RGB", (9, 7), color).save(tmp_path / "colors" / folder / "a.png")
            Image.new("RGB", (6, 6), tuple(c // 2 for c in color)).save(tmp_path / "colors" / folder / "b.jpg")
        return tmp_path / "colors"

    def test_a_folder_of_images_is_scaled_and_classified(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "model", 4)
        bench = Bench(saved(image_model(3, 4, 3), tmp_path / "model"), colors)
        assert bench.clean.accuracy == 1 and bench.dataset.classes == ("0_red", "1_green", "2_blue")
        assert bench.dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
        np.testing.assert_allclose(bench.dataset.arrays["pixel_values"][0, :, 0, 0], [1, 0, 0])
        assert "no preprocessor_config.json" in refusal(image_model(3, 4, 3), colors)

    def test_paths_may_be_relative_and_the_model_rewritten_on_the_way(
        self, tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_image_processor(tmp_path / "model", 4)
        saved(image_model(3, 4, 3), tmp_path / "model")
        monkeypatch.chdir(tmp_path)
        assert Bench("model/model.onnx", "colors", device="rram", only="*").clean.accuracy == 1

    def test_the_digits_as_image_files_are_those_of_the_arrays(self, tmp_path: Path) -> None:
        from PIL import Image

        with np.load(data_path("digits_vit")) as arrays:
            for i, (pixels, label) in enumerate(zip(arrays["pixel_values"][:40, 0], arrays["labels"], strict=False)):
                (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.uint8((pixels + 1) * 120)).save(tmp_path / "digits" / str(label) / f"{i:03}.png")
        config = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "rescale_factor": 1 / 120}
        config |= {"image_mean": [1.0], "image_std": [1.0]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        source = DataSource(tmp_path / "digits", processor=tmp_path)
        files, arrays_alone = (Bench(model_path("digits_vit"), data) for data in (source, data_path("digits_vit")))
        order = np.argsort(files.dataset.labels, kind="stable")
        expected = np.argsort(arrays_alone.dataset.labels[:40], kind="stable")
        np.testing.assert_allclose(
            files.dataset.arrays["pixel_values"][order],
            arrays_alone.dataset.arrays["pixel_values"][:40][expected],
            atol=1e-6,
        )

    def test_the_order_of_the_model_can_be_listed_in_the_folder(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "model", 4)
        (colors / "labels.json").write_text('{"2_blue": 0, "1_green": 1, "0_red": 2}')
        bench = Bench(saved(image_model(3, 4, 3), tmp_path / "model"), colors)
        assert bench.dataset.labels.tolist() == [2, 1, 0, 2, 1, 0]

    def test_a_folder_of_other_classes_than_the_models_is_refused(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "model", 4)
        message = refusal(saved(image_model(3, 4, 10), tmp_path / "model"), colors)
        assert "has 3 classes (0_red, 1_green, 2_blue), but the model has 10" in message and "labels.json" in message

    def test_gray_models_get_gray_images_under_any_input_name(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "gray", 4, channels=1)
        bench = Bench(saved(image_model(1, 4, 3, "input"), tmp_path / "gray"), colors)
        red = 0.299 * 255
        np.testing.assert_allclose(bench.dataset.arrays["input"][0], np.full((1, 4, 4), round(red) / 255), atol=1e-6)

    def test_images_of_another_size_than_the_models_are_named(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "model", 5)
        message = refusal(saved(image_model(3, 4, 3), tmp_path / "model"), colors)
        assert "[6, 3, 5, 5] and the model takes [batch, 3, 4, 4]" in message

    def test_a_file_that_is_no_image_is_named(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "model", 4)
        (colors / "1_green" / "a.png").write_text("no image")
        assert "a.png cannot be read as an image" in refusal(saved(image_model(3, 4, 3), tmp_path / "model"), colors)

    def test_a_table_may_name_image_files(self, tmp_path: Path, colors: Path) -> None:
        save_image_processor(tmp_path / "model", 4)
        (colors / "set.csv").write_text("image,label\n1_green/a.png,1\n2_blue/a.png,0\n")
        assert Bench(saved(image_model(3, 4, 3), tmp_path / "model"), colors / "set.csv").clean.accuracy == 0.5

    def test_parquet_may_hold_encoded_images(self, tmp_path: Path, colors: Path) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        images = [{"bytes": (colors / name / "a.png").read_bytes(), "path": None} for name in ("0_red", "2_blue")]
        parquet.write_table(pyarrow.table({"image": images, "label": [0, 2]}), tmp_path / "set.parquet")
        save_image_processor(tmp_path / "model", 4)
        assert Bench(saved(image_model(3, 4, 3), tmp_path / "model"), tmp_path / "set.parquet").clean.accuracy == 1

    def test_large_sets_lie_on_disk_and_give_the_same(
        self, tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_image_processor(tmp_path / "model", 4)
        model = saved(image_model(3, 4, 3), tmp_path / "model")
        in_memory = Bench(model, colors)
        monkeypatch.setattr("emu.evaluation.preparing._IN_MEMORY", 0)
        on_disk = Bench(model, colors)
        assert isinstance(_space_for((2, 3), np.dtype("float32")), np.memmap)
        assert on_disk.clean == in_memory.clean and on_disk.fingerprint() == in_memory.fingerprint()

    def test_large_sets_may_stay_where_they_are_and_are_prepared_when_they_are_read(
        self, tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_image_processor(tmp_path / "model", 4)
        bench = Bench(saved(image_model(3, 4, 3), tmp_path / "model"), colors)
        kept = bench.dataset.arrays["pixel_values"]
        monkeypatch.setattr("emu.evaluation.preparing._IN_MEMORY", 0)
        inputs = model_inputs(bench.session)
        dataset, _ = load(colors, bench.session, inputs, folder=tmp_path / "model", on_demand=True)
        images = dataset.arrays["pixel_values"]
        assert isinstance(images, ImagesOnDemand) and images.shape == kept.shape
        np.testing.assert_array_equal(images[[2, 0]], kept[[2, 0]])
        np.testing.assert_array_equal(images[1:][[0]], kept[1:2])


def test_options_for_texts_are_not_for_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", input_ids=np.zeros((1, 2), np.int64), labels=np.zeros(1, np.int64))
    message = refusal(reds_and_blues(), DataSource(tmp_path / "set.npz", text_column="text"))
    assert "'text_column' is for images and texts, but" in message and "holds arrays" in message


def test_an_evaluation_tells_task_notes_and_every_metric(tmp_path: Path, tokenizer: Path) -> None:
    source = DataSource(table(tmp_path / "set.jsonl", RECORDS), processor=tokenizer, max_length=4)
    report = json.loads(json.dumps(evaluate(reds_and_blues(), source, device="rram", only="*", chips=3).as_dict()))
    assert report["task"] == report["primary"].replace("accuracy", "classification")
    assert report["notes"] == ["2 of 4 texts were cut to 4 tokens."]
    assert report["metrics"]["accuracy"] == report["accuracy"]
    assert set(report["metrics"]) == {"accuracy", "loss", "ece", "agreement", "output_snr_db"}
    assert all(len(metric["per_chip"]) == 3 for metric in report["metrics"].values())
