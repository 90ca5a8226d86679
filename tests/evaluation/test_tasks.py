"""Each task measures what its name says, from plain arrays, on models whose answers are known."""

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest

from emu import Bench, Trial
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import (
    Arrays,
    Classification,
    MaskedTokens,
    Measured,
    MultipleChoice,
    QuestionAnswering,
    Similarity,
    Task,
    evaluate,
    task_by_name,
)
from emu.evaluation.data import DataSet, Targets, class_targets
from emu.evaluation.evaluation import run
from emu.evaluation.tasks import TASKS

from .tiny import token_model

RNG = np.random.default_rng(7)


def refusal(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


class TestNames:
    @pytest.mark.parametrize(
        "task",
        [
            Classification(),
            Classification(output="cls_logits"),
            QuestionAnswering(longest=5),
            MultipleChoice("tokens"),
            MultipleChoice(),
            MaskedTokens(),
            Similarity(),
            Arrays("hidden"),
        ],
    )
    def test_a_name_with_its_options_gives_the_task_back(self, task: Any) -> None:
        assert task_by_name(task.name) == task

    def test_options_are_in_the_name_where_they_are_not_the_default(self) -> None:
        assert MultipleChoice("characters").name == "multiple_choice:normalize=characters"
        assert MultipleChoice().name == "multiple_choice"

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("accuracy", "no task 'accuracy': choose one of classification, question_answering"),
            ("classification:bins=3", "no option 'bins' (it has 'output')"),
            ("multiple_choice:normalize=words", "'words' and must be one of none, tokens, characters"),
            ("question_answering:longest=many", "'many' and must be a whole number"),
            ("question_answering:longest=0", "must be at least 1"),
        ],
    )
    def test_unknown_names_are_refused(self, name: str, says: str) -> None:
        assert says in refusal(lambda: task_by_name(name))

    def test_the_fingerprint_changes_with_the_options(self) -> None:
        model, data = model_path("digits_vit"), data_path("digits_vit")
        tasks = ["classification", "classification:output=logits", "arrays"]
        prints = [Bench(model, data, task=task, samples=9).fingerprint()["task"] for task in tasks]
        assert prints == tasks
        assert Bench(model, data, samples=9).fingerprint()["task"] == "classification"


@pytest.fixture(scope="module")
def bench() -> Bench:
    changes = {"program.sigma": 0.5}
    return Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", set=changes, samples=60)


class TestClassification:
    def test_the_metrics_of_a_chip_are_those_of_its_logits(self, bench: Bench) -> None:
        score = bench.run(Trial(seed=5))
        feeds = {**bench.dataset.arrays, **bench.controls(Trial(seed=5)), "emu.sample": np.int64(0)}
        noisy = bench.session.run(["logits"], feeds)[0].astype(float)
        clean = bench.session.run(["logits"], {**feeds, "emu.strength": np.zeros(len(bench.sites), np.float32)})[0]
        labels, softmax = bench.dataset.labels, np.exp(noisy) / np.exp(noisy).sum(axis=1, keepdims=True)
        top5 = np.argsort(-noisy, axis=1)[:, :5]
        assert dict(score.metrics) == pytest.approx(
            {
                "accuracy": (noisy.argmax(axis=1) == labels).mean(),
                "top5_accuracy": (top5 == labels[:, None]).any(axis=1).mean(),
                "loss": -np.log(softmax[np.arange(60), labels]).mean(),
                "ece": score.metrics["ece"],
                "agreement": (noisy.argmax(axis=1) == clean.argmax(axis=1)).mean(),
                "output_snr_db": 10 * np.log10(np.square(clean).sum() / np.square(noisy - clean).sum()),
            },
            rel=1e-5,
        )
        assert 0 < score.metrics["ece"] < 1 and score.accuracy < 0.9

    def test_scikit_learn_finds_the_same(self, bench: Bench) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        logits = bench.session.run(["logits"], {**bench.dataset.arrays, "emu.strength": np.zeros(34, np.float32)})[0]
        softmax = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
        clean, labels = bench.clean.metrics, bench.dataset.labels
        assert clean["loss"] == pytest.approx(metrics.log_loss(labels, softmax), rel=1e-5)
        assert clean["top5_accuracy"] == metrics.top_k_accuracy_score(labels, softmax, k=5)
        assert clean["accuracy"] == metrics.accuracy_score(labels, logits.argmax(axis=1))

    def test_the_clean_model_agrees_with_itself(self, bench: Bench) -> None:
        assert bench.clean.metrics["agreement"] == 1
        assert bench.clean.metrics["output_snr_db"] == math.inf

    def test_the_clean_model_runs_once_for_all_trials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = Bench(
            model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", samples=8, batch_size=8
        )
        runs, session = 0, bench.session

        class Counting:
            def run(self, *arguments: Any) -> Any:
                nonlocal runs
                runs += 1
                return session.run(*arguments)

            def __getattr__(self, name: str) -> Any:
                return getattr(session, name)

        monkeypatch.setattr(bench, "session", Counting())
        for seed in range(3):
            bench.run(Trial(seed=seed))
        assert bench.clean.samples == 8
        assert runs == 4

    def test_few_classes_have_no_top_five(self) -> None:
        model = token_model(np.eye(4), [RNG.normal(size=(4, 3))], ["logits"], mean=True)
        score = Bench(model, {"input_ids": np.arange(8).reshape(4, 2) % 4, "labels": [0, 1, 2, 0]}).clean
        assert set(score.metrics) == {"accuracy", "loss", "ece", "agreement", "output_snr_db"}

    def test_another_output_can_be_asked_for(self) -> None:
        weights = [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -1, -1, -1])]
        model = token_model(np.eye(4), weights, ["logits", "opposite"], mean=True)
        data = {"input_ids": np.arange(4)[:, None].repeat(2, axis=1), "labels": np.arange(4)}
        assert Bench(model, data).clean.accuracy == 1
        assert Bench(model, data, task="classification:output=opposite").clean.accuracy == 0
        message = refusal(lambda: Bench(model, data, task=Classification(output="more")).clean)
        assert "no output 'more' (it has 'logits', 'opposite')" in message

    def test_measuring_costs_little_beside_the_inferences(self) -> None:
        bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", threads=1)
        bench.run(Trial())
        whole, outside = [], []
        for seed in range(5):
            start = time.perf_counter()
            kept = bench._outputs(bench.controls(Trial(seed=seed)), None)
            middle = time.perf_counter()
            bench.task.measure(kept, bench.dataset, kept)
            whole.append(time.perf_counter() - start)
            outside.append(time.perf_counter() - middle)
        assert np.median(outside) < 0.02 * np.median(whole)


class TestQuestionAnswering:
    # Token t starts an answer with score start[t] and ends one with end[t]; token 0 stands before every context.
    START = np.array([0.0, 5, 1, 0, 0, 3, 0, 0])
    END = np.array([0.0, 1, 5, 0, 0, 0, 3, 0])
    CONTEXT = "aa bb cc dd"

    def model(self, names: tuple[str, str] = ("start_logits", "end_logits")) -> Any:
        return token_model(np.eye(8), [self.START, self.END], names)

    def data(self, tokens: list[list[int]], answers: list[list[str]], **changes: Any) -> dict[str, Any]:
        rows = len(tokens)
        spans = np.array([[-1, -1], [0, 2], [3, 5], [6, 8], [9, 11]])
        width = max(map(len, answers)) or 1
        texts = np.array([[*each, *[""] * (width - len(each))] for each in answers])
        samples = len(answers)
        return {
            "input_ids": np.array(tokens),
            "offsets": np.repeat(spans[None], rows, axis=0),
            "context": np.array([self.CONTEXT] * samples),
            "answers": texts,
            **changes,
        }

    def test_the_best_span_is_the_answer(self) -> None:
        data = self.data([[0, 1, 2, 3, 4], [0, 3, 5, 3, 6]], [["aa bb"], ["BB, cc", "bb"]])
        bench = Bench(self.model(), data)
        assert bench.task == QuestionAnswering() and bench.task_was_guessed
        # The second answer is "bb cc dd", which shares two of three words with "BB, cc".
        assert bench.clean.metrics == {"f1": pytest.approx((1 + 0.8) / 2), "exact_match": 0.5, "agreement": 1}
        assert bench.clean.correct == 1

    def test_an_answer_never_ends_before_it_starts_nor_is_too_long(self) -> None:
        data = self.data([[0, 2, 3, 3, 5], [0, 5, 3, 3, 6]], [["aa"], ["aa"]])
        bench = Bench(self.model(), data, task="question_answering:longest=3")
        kept = bench._outputs({}, None)
        assert bench.task.answers(kept, bench.dataset) == ["aa", "aa"]  # type: ignore[attr-defined]

    def test_the_best_of_several_windows_counts(self) -> None:
        data = self.data([[0, 3, 3, 5, 6], [0, 3, 1, 3, 2]], [["bb cc dd"]], sample=np.array([0, 0]))
        bench = Bench(self.model(), data)
        assert bench.clean.metrics["exact_match"] == 1 and bench.clean.samples == 1 and bench.batches == 1

    def test_no_answer_is_given_only_where_some_questions_have_none(self) -> None:
        nothing, something = [7, 3, 3, 3, 3], [7, 1, 2, 3, 3]
        table = self.START.copy()
        table[7] = 2  # the sum at the first token
        model = token_model(np.eye(8), [table, self.END], ["start_logits", "end_logits"])
        bench = Bench(model, self.data([nothing, something], [[], ["aa bb"]]))
        assert bench.clean.metrics["exact_match"] == 1
        assert Bench(model, self.data([nothing], [["aa"]])).clean.metrics["exact_match"] == 1  # the first of equals

    def test_outputs_of_other_names_are_taken_in_order(self) -> None:
        data = self.data([[0, 1, 2, 3, 4]], [["aa bb"]])
        assert Bench(self.model(("a", "b")), data, task="question_answering").clean.metrics["f1"] == 1

    def test_answers_that_are_no_number_are_wrong(self) -> None:
        start = self.START.copy()
        start[4] = np.nan
        model = token_model(np.vstack([np.eye(8)]), [start, self.END], ["start_logits", "end_logits"])
        score = Bench(model, self.data([[0, 1, 2, 3, 3]], [["aa bb"]])).clean
        assert score.undefined == 1 and score.metrics["f1"] == 0 and score.metrics["agreement"] == 0

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"offsets": np.zeros((1, 5, 3), int)}, "'offsets'"),
            ({"context": np.array(["x", "y"])}, "'context' has 2"),
            ({"answers": np.array([1])}, "'answers' of The data is int64 [1] and must be texts"),
        ],
    )
    def test_wrong_arrays_are_named(self, changes: dict[str, Any], says: str) -> None:
        data = {**self.data([[0, 1, 2, 3, 4]], [["aa"]]), **changes}
        assert says in refusal(lambda: Bench(self.model(), data))
        del data["offsets"]
        assert "no array 'offsets'" in refusal(lambda: Bench(self.model(), data))


class TestMultipleChoice:
    TABLE = RNG.normal(size=(6, 6)) * 2  # log-odds of the next token after each token

    def data(self, **changes: Any) -> dict[str, Any]:
        # Two questions: prompt 0 with choices (1), (2, 3), (4, 4, 5); prompt 3 with choices (1, 1), (2).
        tokens = [[0, 1, 0, 0], [0, 2, 3, 0], [0, 4, 4, 5], [3, 1, 1, 0], [3, 2, 0, 0]]
        scored = [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]
        return {
            "input_ids": np.array(tokens),
            "scored": np.array(scored),
            "sample": np.array([0, 0, 0, 1, 1]),
            "labels": np.array([1, 0]),
            "characters": np.array([4, 9, 2, 5, 1]),
            **changes,
        }

    def bench(self, normalize: str = "none", **changes: Any) -> Bench:
        model = token_model(np.eye(6), [self.TABLE], ["logits"])
        return Bench(model, self.data(**changes), task=f"multiple_choice:normalize={normalize}")

    @pytest.mark.parametrize("normalize", ["none", "tokens", "characters"])
    def test_the_likeliest_choice_is_taken(self, normalize: str) -> None:
        p = np.exp(self.TABLE) / np.exp(self.TABLE).sum(axis=1, keepdims=True)
        chains = [[0, 1], [0, 2, 3], [0, 4, 4, 5], [3, 1, 1], [3, 2]]
        scores = np.array([sum(np.log(p[a, b]) for a, b in pairwise(c)) for c in chains])
        scores /= {"none": np.ones(5), "tokens": [1, 2, 3, 2, 1], "characters": [4, 9, 2, 5, 1]}[normalize]
        bench = self.bench(normalize)
        kept = bench._outputs({}, None)
        expected = [scores[:3].argmax(), scores[3:].argmax()]
        assert bench.task.choices(kept, bench.dataset).tolist() == expected  # type: ignore[attr-defined]
        assert bench.clean.accuracy == np.mean(np.array(expected) == [1, 0])

    def test_what_follows_a_choice_does_not_change_it(self) -> None:
        tokens = self.data()["input_ids"]
        padded = np.where(tokens == 0, 5, tokens)
        padded[:, 0] = tokens[:, 0]
        padded[2] = tokens[2]
        assert self.bench(input_ids=padded).clean == self.bench().clean

    def test_samples_are_questions(self) -> None:
        bench = Bench(token_model(np.eye(6), [self.TABLE], ["logits"]), self.data(), samples=1)
        assert bench.task_was_guessed and bench.task == MultipleChoice()
        assert (bench.clean.samples, bench.dataset.rows) == (1, 3)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"labels": np.array([1, 2])}, "choice 2 for question 1, which has 2 choices"),
            ({"sample": np.array([0, 1, 0, 1, 1])}, "side by side"),
            ({"scored": np.zeros((5, 4), int)}, "marks no token after the first in row 0"),
            ({"labels": np.array([1])}, "2 samples, but 'labels' has 1"),
            ({"input_ids": np.full((5, 4), 5), "sample": np.zeros(5)}, "'sample'"),
        ],
    )
    def test_wrong_arrays_are_named(self, changes: dict[str, Any], says: str) -> None:
        assert says in refusal(lambda: self.bench(**changes))

    def test_a_model_without_a_vocabulary_is_refused(self) -> None:
        model = token_model(np.eye(6), [self.TABLE], ["logits"], mean=True)
        assert "scores of the vocabulary" in refusal(lambda: Bench(model, self.data()).clean)
        few = token_model(np.eye(6), [self.TABLE[:, :4]], ["logits"])
        assert "has token 5, but the model has scores for 4" in refusal(lambda: Bench(few, self.data()).clean)


class TestMaskedTokens:
    TABLE = RNG.normal(size=(5, 5))

    def test_only_the_tokens_asked_for_count(self) -> None:
        best = self.TABLE.argmax(axis=1)
        labels = np.array([[-100, best[1], -100], [(best[2] + 1) % 5, -100, best[0]]])
        bench = Bench(
            token_model(np.eye(5), [self.TABLE], ["logits"]), {"input_ids": [[0, 1, 2], [2, 1, 0]], "labels": labels}
        )
        assert bench.task == MaskedTokens()
        p = np.log(np.exp(self.TABLE) / np.exp(self.TABLE).sum(axis=1, keepdims=True))
        loss = -(p[1, best[1]] + p[2, (best[2] + 1) % 5] + p[0, best[0]]) / 3
        assert bench.clean.metrics == pytest.approx({"accuracy": 2 / 3, "loss": loss, "agreement": 1})
        assert bench.clean.accuracy == pytest.approx(2 / 3)

    def test_labels_that_ask_for_nothing_or_for_no_token_are_refused(self) -> None:
        model = token_model(np.eye(5), [self.TABLE], ["logits"])
        for label, says in ((-100, "no token is asked for"), (-1, "has -1"), (9, "has token 9")):
            data = {"input_ids": [[0, 1]], "labels": np.full((1, 2), label)}
            assert says in refusal(lambda data=data: Bench(model, data).clean)  # type: ignore[misc]

    def test_no_interval_over_samples_is_claimed_for_tokens(self) -> None:
        data = {"input_ids": [[0, 1]], "labels": self.TABLE.argmax(axis=1)[None, :2]}
        result = evaluate(token_model(np.eye(5), [self.TABLE], ["logits"]), data)
        assert result.as_dict()["clean"]["accuracy"] == 1 and result.clean_ci95 is None


class TestSimilarity:
    TABLE = RNG.normal(size=(9, 4))

    def embeddings(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.stack([self.TABLE[row[keep == 1]].mean(axis=0) for row, keep in zip(ids, mask, strict=True)])

    def test_embeddings_are_means_over_the_attention_mask(self) -> None:
        from scipy.stats import spearmanr

        ids, mask = RNG.integers(0, 9, (12, 5)), (np.arange(5) < RNG.integers(1, 6, (12, 1))).astype(int)
        gold = RNG.normal(size=6)
        model = token_model(self.TABLE, [np.eye(4)], ["last_hidden_state"], extra_inputs=["attention_mask"])
        bench = Bench(model, {"input_ids": ids, "attention_mask": mask, "labels": gold})
        assert bench.task == Similarity() and bench.clean.samples == 6
        first, second = np.split(self.embeddings(ids, mask).reshape(6, 2, 4), 2, axis=1)
        first, second = first[:, 0], second[:, 0]
        cosine = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        assert bench.clean.metrics["spearman"] == pytest.approx(spearmanr(cosine, gold).statistic)

    def test_an_output_of_embeddings_is_taken_as_it_is(self) -> None:
        model = token_model(self.TABLE, [np.eye(4)], ["sentence_embedding"], mean=True)
        ids = RNG.integers(0, 9, (8, 3))
        bench = Bench(model, {"input_ids": ids, "labels": np.arange(4.0)})
        kept = bench._outputs({}, None)
        np.testing.assert_allclose(kept["embedding"], self.TABLE[ids].mean(axis=1), rtol=1e-5)

    def test_pairs_need_two_rows(self) -> None:
        model = token_model(self.TABLE, [np.eye(4)], ["sentence_embedding"], mean=True)
        says = refusal(lambda: Bench(model, {"input_ids": np.zeros((3, 2), int), "labels": np.zeros(1)}))
        assert "3 rows" in says and "two of them" in says


class TestArrays:
    def test_outputs_are_compared_with_the_clean_ones_without_labels(self) -> None:
        model = token_model(np.eye(5), [RNG.normal(size=(5, 7))], ["hidden"])
        bench = Bench(model, {"input_ids": RNG.integers(0, 5, (6, 3))}, device="rram", only="*")
        assert bench.task == Arrays() and bench.task_was_guessed
        score = bench.run(Trial(seed=1))
        assert 10 < score.metrics["output_snr_db"] < 40 and 0 < score.metrics["relative_error"] < 0.3
        assert bench.clean.metrics == {"output_snr_db": math.inf, "relative_error": 0}
        assert "no accuracy" in refusal(lambda: score.accuracy)

    def test_the_error_grows_with_the_disturbance(self) -> None:
        data = {"pixel_values": np.load(data_path("digits_vit"))["pixel_values"][:16]}
        bench = Bench(model_path("digits_vit"), data, device="rram", only="*")
        errors = [
            bench.run(Trial(set={"program.sigma": sigma})).metrics["relative_error"] for sigma in (0.05, 0.1, 0.2)
        ]
        assert errors == sorted(errors) and errors[0] > 0

    def test_the_primary_metric_takes_the_place_of_accuracy(self) -> None:
        model = token_model(np.eye(5), [RNG.normal(size=(5, 7))], ["hidden"])
        report = evaluate(model, {"input_ids": RNG.integers(0, 5, (6, 3))}, device="rram", only="*", chips=2).as_dict()
        assert report["accuracy"] is None and report["clean"]["accuracy"] is None and report["clean"]["ci95"] is None
        assert report["primary"] == "output_snr_db" and len(report["metrics"]["output_snr_db"]["per_chip"]) == 2
        assert report["clean"]["metrics"]["output_snr_db"] is None


class TestGuessing:
    def test_labels_forgotten_or_misspelt_are_not_taken_for_none(self) -> None:
        model = token_model(np.eye(5), [RNG.normal(size=(5, 7))], ["logits"], mean=True)
        data = {"input_ids": [[1, 2]], "label": [1]}
        assert "no array 'labels' (it has 'input_ids', 'label')" in refusal(lambda: Bench(model, data))
        assert Bench(model, data, task="arrays").clean.samples == 1

    def test_a_task_that_is_asked_for_is_not_guessed(self) -> None:
        bench = Bench(model_path("digits_vit"), data_path("digits_vit"), samples=5, task="arrays")
        assert bench.task == Arrays() and not bench.task_was_guessed

    def test_every_task_says_what_it_misses(self) -> None:
        model = token_model(np.eye(5), [RNG.normal(size=(5, 7))], ["logits"])
        for name in set(TASKS) - {"arrays"}:
            says = refusal(lambda name=name: Bench(model, {"input_ids": [[1, 2], [1, 2]]}, task=name))  # type: ignore[misc]
            assert "has no array" in says


def test_a_task_of_ones_own_is_measured_and_named() -> None:
    @dataclass(frozen=True)
    class Largest(Task):
        scale: float = 1.0
        kind: ClassVar[str] = "largest"
        primary: ClassVar[str] = "largest"

        def targets(self, arrays: Any, rows: int, where: str) -> Targets:
            return Targets(np.zeros(rows))

        def keep(self, outputs: Any, dataset: Any, rows: slice) -> dict[str, np.ndarray]:
            return {"largest": outputs["logits"].max(axis=1)}

        def measure(self, kept: Any, dataset: Any, clean: Any) -> Measured:
            return Measured({"largest": self.scale * float(kept["largest"].max())})

    model = token_model(np.eye(4), [np.diag([1.0, 2, 3, 4])], ["logits"], mean=True)
    result = evaluate(model, {"input_ids": [[0, 0], [3, 3], [1, 2]]}, task=Largest(scale=2))
    assert (result.task, result.clean.metrics) == ("largest:scale=2", {"largest": 8})


def measured(task: Task, kept: list[dict[str, Any]], dataset: DataSet) -> Measured:
    """What a task measures on outputs that are written down; the second, or only, are those of the clean model."""
    parts = [task.keep(outputs, dataset, slice(0, dataset.rows)) for outputs in kept]
    found = task.measure(parts[0], dataset, parts[-1])
    outcomes = task.outcomes(parts[0], dataset, parts[-1])
    assert len({len(each) for each in outcomes.values()}) == 1
    for name, metric in (("correct", "accuracy"), ("correct", "exact_match"), ("f1", "f1")):
        if name in outcomes and metric in found.metrics:
            assert outcomes[name].mean() == pytest.approx(found.metrics[metric]), "samples make the metric"
    if "margin" in outcomes:
        known = ~np.isnan(outcomes["margin"])
        assert (outcomes["correct"] >= (outcomes["margin"] > 0))[known].all()
    if "relative_error" in outcomes:
        both = outcomes["relative_error"][np.isfinite(outcomes["relative_error"])]
        assert both.mean() == pytest.approx(found.metrics["relative_error"])
    return found


def data_set(labels: Any, rows: int, **targets: Any) -> DataSet:
    return DataSet({"x": np.zeros((rows, 1))}, np.asarray(labels), {}, (), "data.npz", targets=targets)


class TestOneScore:
    """Binary classifiers and rerankers give one logit for each sample."""

    @pytest.mark.parametrize("shape", [(4, 1), (4,)])
    def test_it_is_the_logit_of_class_1(self, shape: tuple[int, ...]) -> None:
        scores, labels = np.float32([2, -1, 0.5, -3]).reshape(shape), [1, 0, 0, 1]
        found = measured(Classification(), [{"logits": scores}], data_set(labels, 4)).metrics
        probability = 1 / (1 + np.exp(-scores.ravel().astype(float)))
        right = np.where(np.array(labels) == 1, probability, 1 - probability)
        assert found["accuracy"] == 0.5
        assert found["loss"] == pytest.approx(-np.log(right).mean())
        assert found["agreement"] == 1 and found["output_snr_db"] == math.inf

    def test_a_score_that_is_no_number_is_undefined(self) -> None:
        scores = np.float32([[2], [np.nan], [np.inf], [-np.inf]])
        found = measured(Classification(), [{"logits": scores}], data_set([1, 0, 1, 0], 4))
        assert (found.correct, found.undefined) == (3, 1)

    def test_other_classes_are_refused(self) -> None:
        says = refusal(lambda: measured(Classification(), [{"logits": np.zeros((2, 1))}], data_set([1, 2], 2)))
        assert "has class 2, but the model has one score, for classes 0 and 1" in says

    def test_a_model_with_one_score_is_evaluated_on_a_chip(self) -> None:
        model = token_model(np.eye(4), [np.array([[3.0], [-2.0], [1.0], [-1.0]])], ["logits"], mean=True)
        data = {"input_ids": np.repeat(np.arange(4)[:, None], 2, axis=1), "labels": np.array([[1], [0], [1], [1]])}
        result = evaluate(model, data, chips=2, device="rram", only="*")
        assert result.task == "classification" and result.clean.accuracy == 0.75


class TestUndefined:
    """Rows that hold NaN have no answer: they are counted, are wrong, and agree with nothing. Infinities are scores."""

    def test_of_classes(self) -> None:
        logits = np.float32([[0, 1, np.nan], [0, 1, np.inf], [-np.inf, 1, 0], [np.nan] * 3, [0, 1, 2]])
        found = measured(Classification(), [{"logits": logits}], data_set([1, 2, 1, 0, 2], 5))
        assert (found.correct, found.undefined) == (3, 2)
        assert found.metrics["accuracy"] == 0.6 and found.metrics["agreement"] == 0.6
        known = [np.log(np.exp([1, 0]).sum()) - 1, np.log(np.exp([0, 1, 2]).sum()) - 2]
        assert found.metrics["loss"] == pytest.approx(np.mean(known)), "rows without a probability are left out"

    def test_a_clean_answer_that_is_no_number_is_agreed_with_by_none(self) -> None:
        clean = np.float32([[np.nan, 1], [0, 1]])
        outputs = [{"logits": np.float32([[1, 0], [0, 1]])}, {"logits": clean}]
        assert measured(Classification(), outputs, data_set([0, 1], 2)).metrics["agreement"] == 0.5
        outputs = [{"logits": each["logits"][:, None]} for each in outputs]
        assert measured(MaskedTokens(), outputs, data_set([[0], [1]], 2)).metrics["agreement"] == 0.5

    def test_of_spans(self) -> None:
        offsets = np.stack([np.arange(3), np.arange(3) + 1], axis=1)[None].repeat(4, axis=0)
        labels = np.empty(4, object)
        labels[:] = [["b"]] * 4
        start = np.array([[0, 2, 0], [0, np.nan, 0], [0, np.inf, -np.inf], [-np.inf, 1, -np.inf]])
        end = np.array([[0, 2, 0], [0, 2, 0], [-np.inf, 2, np.inf], [np.inf, 1, -np.inf]])
        end[2] = [-np.inf, 2, -np.inf]
        dataset = data_set(labels, 4, offsets=offsets, sample=np.arange(4), context=np.array(["abc"] * 4))
        found = measured(QuestionAnswering(), [{"start_logits": start, "end_logits": end}], dataset)
        assert (found.correct, found.undefined) == (3, 1)
        assert found.metrics["agreement"] == 0.75

    def test_of_choices(self) -> None:
        tokens, scored = np.ones((8, 2), np.int64), np.tile([0, 1], (8, 1)).astype(bool)
        logits = np.zeros((8, 2, 3))
        logits[::2, 0, 1] = 1  # the first of each two choices is the likelier one
        logits[0, 1] = np.nan  # where nothing is predicted from
        logits[3, 0, 2] = np.nan
        logits[4, 0, 0] = -np.inf
        logits[7, 0, 1] = np.inf  # has no probability, and with it the question no answer
        dataset = data_set([0] * 4, 8, input_ids=tokens, scored=scored, sample=np.arange(8) // 2)
        found = measured(MultipleChoice(), [{"logits": logits}], dataset)
        assert (found.correct, found.undefined) == (2, 2)
        assert found.metrics["agreement"] == 0.5

    def test_of_tokens(self) -> None:
        logits = np.zeros((3, 2, 2))
        logits[..., 1] = 1
        logits[0, 0, 0] = np.nan  # not asked for
        logits[1, 1, 0] = np.nan
        logits[2, 1, 1] = np.inf
        found = measured(MaskedTokens(), [{"logits": logits}], data_set([[-100, 1], [1, 1], [1, 1]], 3))
        assert found.undefined == 1
        assert found.metrics["accuracy"] == 0.8

    def test_of_similarities(self) -> None:
        hidden = np.ones((6, 2, 2), np.float32)
        hidden[0, 1] = np.nan  # padding
        hidden[2, 0, 0] = np.nan
        hidden[4, 0] = 0
        mask = np.ones((6, 2), np.int64)
        mask[:, 1] = 0
        dataset = data_set([0.1, 0.2, 0.3], 6, attention_mask=mask, sample=np.arange(6) // 2)
        assert measured(Similarity(), [{"last_hidden_state": hidden}], dataset).undefined == 2

    def test_of_arrays(self) -> None:
        output = np.float32([[1, 2], [np.nan, 1], [np.inf, 1], [3, 4]])
        found = measured(Arrays(), [{"y": output}, {"y": np.ones((4, 2), np.float32)}], data_set([0] * 4, 4))
        assert found.undefined == 2
        assert found.metrics["relative_error"] == pytest.approx((1 / 2**0.5 + 13**0.5 / 2**0.5) / 2)


def test_labels_may_be_a_column() -> None:
    assert class_targets({"labels": np.array([[1], [0]])}, 2, "x").labels.tolist() == [1, 0]
    pairs = {"labels": np.array([[0.5], [0.25]]), "sample": np.arange(4) // 2}
    assert Similarity().targets(pairs, 4, "x").labels.tolist() == [0.5, 0.25]
    assert "of shape [samples] or [samples, 1]" in refusal(lambda: class_targets({"labels": np.zeros((2, 2))}, 2, "x"))
    model = token_model(np.eye(4), [RNG.normal(size=(4, 3))], ["logits"])  # one label for each token, of one token
    data = {"input_ids": np.zeros((2, 1), np.int64), "labels": np.zeros((2, 1), np.int64)}
    assert Bench(model, data).task == MaskedTokens()
    model = token_model(np.eye(4), [RNG.normal(size=(4, 3))], ["logits"], mean=True)
    assert Bench(model, data).task == Classification()


def test_missing_token_types_are_zeros_and_that_is_said() -> None:
    model = token_model(np.eye(4), [np.eye(4)], ["logits"], mean=True, extra_inputs=["token_type_ids"])
    data = {"input_ids": np.arange(8).reshape(4, 2) % 4, "labels": [0, 1, 2, 0]}
    given = {**data, "token_type_ids": np.zeros((4, 2), np.int64)}
    results = [evaluate(model, each) for each in (data, given)]
    assert results[0].clean == results[1].clean
    assert results[0].notes == ("The data have no 'token_type_ids': zeros were taken, one text a row.",)
    assert results[1].notes == ()
    one = run(model, {"input_ids": data["input_ids"]})
    np.testing.assert_array_equal(one["logits"], run(model, {"input_ids": data["input_ids"], **given})["logits"])
    other = token_model(np.eye(4), [np.eye(4)], ["logits"], mean=True, extra_inputs=["position_ids"])
    assert "has no array 'position_ids'" in refusal(lambda: evaluate(other, data))
