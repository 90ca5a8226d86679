"""What is measured on the outputs of a model: one task per kind of model.

A task is plain data. It names what it needs of the data (`targets`), which outputs are computed (`outputs`), what of
each batch is kept (`keep`), and what the metrics are (`measure`), given the same of the clean model.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError, listing, suggestion
from emu.evaluation.data import Array, DataSet, Targets, check_count, class_targets, kind_of, one_per_sample
from emu.evaluation.metrics import (
    answer_scores,
    expected_calibration_error,
    label_ranks,
    log_probabilities,
    output_snr_db,
    relative_errors,
    spearman,
)
from emu.evaluation.plausibility import Answers

Metrics = dict[str, float]
Kept = dict[str, Array]
"""What a task keeps of the outputs: arrays by name, which batches are joined to along the first axis."""

IGNORED_LABEL = -100
"""The label of tokens that are not scored."""


@dataclass(frozen=True)
class Measured:
    """The metrics of one trial, the samples answered right, and those whose outputs are not a number.

    `values` are what the primary metric is the mean of, `[samples]`; None where it is no mean over samples.
    """

    metrics: Metrics
    correct: int = 0
    undefined: int = 0
    values: Array | None = None


class Task(ABC):
    """One kind of measurement; its options are the fields of a frozen dataclass."""

    kind: ClassVar[str]
    primary: ClassVar[str]
    """The metric that is meant where one number is asked for."""

    @property
    def name(self) -> str:
        """Names the task and the options that are not the defaults; `task_by_name` reads it."""
        options = [f"{each.name}={getattr(self, each.name)}" for each in fields(self) if not _is_default(self, each)]  # type: ignore[arg-type]
        return self.kind + (":" + ",".join(options) if options else "")

    @abstractmethod
    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """Picks from the data what outputs are compared with, and checks it.

        Args:
            arrays: all arrays of the data.
            rows: rows of the model's inputs.
            where: the file, for messages.

        Raises:
            InputError: something is missing, or of another type or shape.
        """

    def outputs(self, session: Any) -> list[str]:
        """Names of the outputs to compute: `logits`, or the first output if none is so named."""
        return [_pick_output(session, ("logits",))]

    @abstractmethod
    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """What is kept of one batch.

        Args:
            outputs: the outputs that were asked for, `[rows of the batch, ...]`.
            dataset: the whole data.
            rows: the rows of the batch.

        Raises:
            InputError: an output is not what this task measures.
        """

    @abstractmethod
    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """The metrics of one trial.

        Args:
            kept: of the trial.
            dataset: the whole data.
            clean: of the model without disturbance.
        """

    def chosen(self, kept: Kept, dataset: DataSet) -> Answers | None:
        """The classes or choices that a model took, to be held against chance; None for a task without them.

        Args:
            kept: of the trial.
            dataset: the whole data.
        """
        return None

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """What the metrics of one trial are made of, sample by sample: arrays by name, all of one length.

        `predicted`; `correct`, whether it is right; `margin`, how far the score of the right answer is above that of
        the best other one; and what a task measures instead. Where an entry is not a sample, as for tokens, `sample` is
        the one that it is of. The arguments are those of `measure`.
        """
        return {}


@dataclass(frozen=True)
class Classification(Task):
    """One class for each sample, from the output `logits` (or the first output), `[samples, classes]`.

    A single score for each sample, `[samples, 1]` or `[samples]`, as binary classifiers and rerankers give it, is the
    logit of class 1 against class 0: its logistic function is the probability of class 1.

    Args:
        output: name of the output; empty for the default.
    """

    output: str = ""
    kind: ClassVar[str] = "classification"
    primary: ClassVar[str] = "accuracy"

    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """`labels`, int `[samples]` or `[samples, 1]`."""
        return class_targets(arrays, rows, where)

    def outputs(self, session: Any) -> list[str]:
        """The logits."""
        return [_pick_output(session, ("logits",), self.output)]

    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """The logits."""
        (name, logits), labels = next(iter(outputs.items())), dataset.labels[rows]
        single = logits.ndim in (1, 2) and len(logits) == len(labels) == logits.size
        if single:  # the softmax of 0 and z is the logistic function of z
            score = _as_float(logits).reshape(-1, 1)
            logits = np.concatenate([np.where(np.isnan(score), score, 0), score], axis=1)
        if logits.ndim != 2 or len(logits) != len(labels):
            raise InputError(
                f"Output '{name}' of the model is of shape {list(logits.shape)} for {len(labels)} samples: "
                "accuracy needs one row of class scores for each sample."
            )
        classes = logits.shape[1]
        if dataset.classes is not None and len(dataset.classes) != classes:
            raise InputError(
                f"{dataset.where} has {len(dataset.classes)} classes ({_some(dataset.classes)}), but the model has "
                f"{classes}: list the model's classes in their order in a file (--classes, or labels.json beside the "
                "images)."
            )
        if labels.max() >= classes:
            raise InputError(
                f"'labels' of {dataset.where} has class {labels.max()}, but the model has "
                + ("one score, for classes 0 and 1." if single else f"{classes} classes.")
            )
        return {"logits": _as_float(logits)}

    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """Accuracy, top-5 accuracy, loss, calibration error, and agreement with the clean model."""
        logits, labels = kept["logits"], dataset.labels
        defined = ~np.isnan(logits).any(axis=1)
        ranks = label_ranks(logits, labels)
        right = (ranks == 0) & defined
        at_label, largest = log_probabilities(logits, labels)
        usable = ~np.isnan(largest)
        metrics = {"accuracy": _share(right)}
        if logits.shape[1] >= 5:
            metrics["top5_accuracy"] = _share((ranks < 5) & defined)
        metrics |= {
            "loss": _mean(-at_label[usable]),
            "ece": expected_calibration_error(np.exp(largest[usable]), right[usable]),
            "agreement": _share(
                (logits.argmax(axis=1) == clean["logits"].argmax(axis=1))
                & defined
                & ~np.isnan(clean["logits"]).any(axis=1)
            ),
            "output_snr_db": _snr(clean["logits"], logits),
        }
        return Measured(metrics, int(right.sum()), int((~defined).sum()), right)

    def chosen(self, kept: Kept, dataset: DataSet) -> Answers:
        """The class of the largest score of each sample."""
        logits = kept["logits"]
        predicted = np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))
        return Answers.of_classes(dataset.labels, predicted, logits.shape[1])

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """Class, whether it is right, and the margin of the label's logit; class -1 where outputs are not a number."""
        logits, labels = kept["logits"], dataset.labels
        defined = ~np.isnan(logits).any(axis=1)
        at_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
        with np.errstate(invalid="ignore"):
            margin = at_label - others.max(axis=1)
        return {
            "predicted": np.where(defined, logits.argmax(axis=1), -1).astype(np.int32),
            "correct": (label_ranks(logits, labels) == 0) & defined,
            "margin": margin.astype(np.float32),
        }


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Spans of a context that answer a question, from `start_logits` and `end_logits` (or the first two outputs).

    The answer is the span with the largest sum of its start and end logit, over all windows of a context. Where some
    questions of the data have no answer, the empty one is taken if the sum at the first token is larger.

    Args:
        longest: tokens of the longest span.
    """

    longest: int = 30
    kind: ClassVar[str] = "question_answering"
    primary: ClassVar[str] = "f1"

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise InputError(f"Option 'longest' of question_answering is {self.longest} and must be at least 1.")

    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """`offsets`, int `[rows, tokens, 2]`: the characters of each token, -1 for tokens outside the context.

        `sample` `[rows]` says which question a row belongs to; `context` and `answers` are texts, `[samples]` and
        `[samples, answers]`, the latter filled up with empty ones.
        """
        offsets = _wanted(arrays, "offsets", where, "the characters of each token in the context")
        check_count(offsets, rows, "offsets", where)
        if offsets.ndim != 3 or offsets.shape[2] != 2 or offsets.dtype.kind != "i":
            raise InputError(f"'offsets' of {where} is {kind_of(offsets)} and must be int [rows, tokens, 2].")
        sample = _sample_of_rows(arrays, rows, where, np.arange(rows))
        samples = int(sample[-1]) + 1 if rows else 0
        context = _wanted(arrays, "context", where, "the text that holds the answer")
        answers = _wanted(arrays, "answers", where, "the right answers")
        for name, array in (("context", context), ("answers", answers)):
            check_count(array, samples, name, where)
            if array.dtype.kind not in "UO":
                raise InputError(f"'{name}' of {where} is {kind_of(array)} and must be texts.")
        labels = np.empty(samples, object)
        labels[:] = [[text for text in np.atleast_1d(each) if text] for each in answers]
        return Targets(labels, {"offsets": offsets, "sample": sample}, {"context": context})

    def outputs(self, session: Any) -> list[str]:
        """The start and end logits."""
        names = _output_names(session)
        if {"start_logits", "end_logits"} <= set(names):
            return ["start_logits", "end_logits"]
        if len(names) < 2:
            raise InputError(
                f"The model has one output, '{names[0]}', and question_answering needs two, 'start_logits' and "
                "'end_logits'."
            )
        return names[:2]

    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """The best span of each row."""
        offsets = dataset.targets["offsets"][rows]
        for name, logits in outputs.items():
            if logits.shape != offsets.shape[:2]:
                raise InputError(
                    f"Output '{name}' of the model is of shape {list(logits.shape)} for {offsets.shape[0]} rows of "
                    f"{offsets.shape[1]} tokens: question_answering needs one score for each token."
                )
        start, end = (_as_float(logits).astype(np.float64) for logits in outputs.values())
        undefined = np.isnan(start).any(axis=1) | np.isnan(end).any(axis=1)
        start[undefined] = end[undefined] = 0
        score, first, last = _best_spans(start, end, offsets[..., 0] >= 0, self.longest)
        row = np.arange(len(start))
        with np.errstate(invalid="ignore"):
            null = start[:, 0] + end[:, 0]
        return {
            "score": np.where(undefined, -np.inf, score),
            "null": np.where(np.isnan(null), -np.inf, null),
            "from": offsets[row, first, 0],
            "to": offsets[row, last, 1],
            "undefined": undefined,
        }

    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """F1, exact match and agreement with the clean model."""
        answers, expected = self.answers(kept, dataset), self.answers(clean, dataset)
        f1, exact = _answer_scores(answers, dataset)
        agree = [answer is not None and answer == other for answer, other in zip(answers, expected, strict=True)]
        metrics = {"f1": _mean(f1), "exact_match": _mean(exact), "agreement": _share(np.array(agree))}
        return Measured(metrics, int(exact.sum()), sum(answer is None for answer in answers), f1)

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """Answer, whether it matches exactly, and its F1."""
        answers = self.answers(kept, dataset)
        f1, exact = _answer_scores(answers, dataset)
        return {
            "predicted": np.array([each or "" for each in answers], str),
            "correct": exact > 0,
            "f1": f1.astype(np.float32),
        }

    def answers(self, kept: Kept, dataset: DataSet) -> list[str | None]:
        """The predicted answer of each sample; None where its outputs are not a number."""
        sample = dataset.targets["sample"]
        nothing_allowed = any(not right for right in dataset.labels)
        starts = np.flatnonzero(np.diff(sample, prepend=-1))
        best = np.lexsort((-kept["score"], sample))[starts]
        null = np.minimum.reduceat(kept["null"], starts)
        undefined = np.logical_or.reduceat(kept["undefined"], starts)
        answers: list[str | None] = []
        for i, row in enumerate(best):
            found = kept["score"][row] > -np.inf
            if undefined[i]:
                answers.append(None)
            elif not found or (nothing_allowed and null[i] > kept["score"][row]):
                answers.append("")
            else:
                answers.append(str(dataset.targets["context"][i])[kept["from"][row] : kept["to"][row]])
        return answers


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Which of several continuations a language model finds likeliest, from logits `[rows, tokens, vocabulary]`.

    The score of a choice is the sum of the log-probabilities of its tokens, each predicted from those before it.

    Args:
        normalize: divide the score by nothing, or by the choice's length in tokens or in characters.
    """

    normalize: Literal["none", "tokens", "characters"] = "none"
    kind: ClassVar[str] = "multiple_choice"
    primary: ClassVar[str] = "accuracy"

    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """`labels`, int `[samples]`: index of the right choice; `scored` `[rows, tokens]`: 1 at tokens of the choice.

        `sample` `[rows]` says which question a row belongs to, `input_ids` `[rows, tokens]` which tokens were
        predicted, `characters` `[rows]` how long a choice is.
        """
        tokens = _wanted(arrays, "input_ids", where, "the tokens of each choice")
        scored = _wanted(arrays, "scored", where, "1 at the tokens of the choice, 0 elsewhere")
        sample = _sample_of_rows(arrays, rows, where, None)
        if scored.shape != tokens.shape or scored.dtype.kind not in "iub":
            raise InputError(f"'scored' of {where} is {kind_of(scored)} and must be whole numbers like 'input_ids'.")
        if not scored[:, 1:].any(axis=1).all():
            row = int(np.argmin(scored[:, 1:].any(axis=1)))
            raise InputError(
                f"'scored' of {where} marks no token after the first in row {row}: every choice needs one."
            )
        per_row = {"input_ids": tokens, "scored": scored.astype(bool), "sample": sample}
        if self.normalize == "characters":
            characters = _wanted(arrays, "characters", where, "the length of each choice in characters")
            check_count(characters, rows, "characters", where)
            if characters.dtype.kind not in "iuf" or characters.min() <= 0:
                raise InputError(f"'characters' of {where} must be numbers larger than 0.")
            per_row["characters"] = characters
        elif "characters" in arrays:
            per_row["characters"] = arrays["characters"]
        labels = class_targets(arrays, int(sample[-1]) + 1 if rows else 0, where).labels
        choices = np.bincount(sample)
        if (labels >= choices).any():
            i = int(np.argmax(labels >= choices))
            raise InputError(
                f"'labels' of {where} has choice {labels[i]} for question {i}, which has {choices[i]} choices."
            )
        return Targets(labels, per_row)

    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """The summed log-probability of each row."""
        tokens, scored = dataset.targets["input_ids"][rows], dataset.targets["scored"][rows]
        logits = _token_logits(outputs, tokens.shape)
        row, position = np.nonzero(scored[:, 1:])
        ids = tokens[row, position + 1]
        _check_vocabulary(ids, logits, dataset.where)
        at_label, _ = log_probabilities(logits[row, position], ids.astype(np.int64))
        return {"score": np.bincount(row, at_label, len(tokens))}

    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """Accuracy and agreement with the clean model."""
        chosen, expected = self.choices(kept, dataset), self.choices(clean, dataset)
        right = chosen == dataset.labels
        agree = (chosen == expected) & (chosen >= 0)
        return Measured(
            {"accuracy": _share(right), "agreement": _share(agree)}, int(right.sum()), int((chosen < 0).sum()), right
        )

    def chosen(self, kept: Kept, dataset: DataSet) -> Answers:
        """The choice of each question; chance takes any of its choices."""
        chance = float((1 / np.bincount(dataset.targets["sample"])).mean())
        return Answers(dataset.labels, self.choices(kept, dataset), None, chance)

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """Choice, whether it is right, and the margin of the right one's score; -1 where outputs are not a number."""
        chosen, scores, sample = self.choices(kept, dataset), self._scores(kept, dataset), dataset.targets["sample"]
        starts = np.flatnonzero(np.diff(sample, prepend=-1))
        right = starts + dataset.labels
        others = scores.copy()
        others[right] = -np.inf
        with np.errstate(invalid="ignore"):
            margin = scores[right] - np.maximum.reduceat(others, starts)
        return {
            "predicted": chosen.astype(np.int32),
            "correct": chosen == dataset.labels,
            "margin": margin.astype(np.float32),
        }

    def _scores(self, kept: Kept, dataset: DataSet) -> Array:
        """The score of each row, normalized."""
        if self.normalize == "none":
            return kept["score"]
        by_tokens = self.normalize == "tokens"
        lengths = dataset.targets["scored"][:, 1:].sum(axis=1) if by_tokens else dataset.targets["characters"]
        return np.asarray(kept["score"] / lengths)

    def choices(self, kept: Kept, dataset: DataSet) -> NDArray[np.int64]:
        """The choice taken for each sample; -1 where outputs are not a number."""
        scores, sample = self._scores(kept, dataset), dataset.targets["sample"]
        starts = np.flatnonzero(np.diff(sample, prepend=-1))
        best = np.lexsort((-scores, sample))[starts] - starts
        return np.where(np.logical_or.reduceat(np.isnan(scores), starts), -1, best)


@dataclass(frozen=True)
class MaskedTokens(Task):
    """The right token at some positions, from logits `[rows, tokens, vocabulary]`: masked words, or a tag per token."""

    kind: ClassVar[str] = "masked_tokens"
    primary: ClassVar[str] = "accuracy"

    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """`labels`, int `[rows, tokens]`: the right token, -100 where none is asked for."""
        labels = _wanted(arrays, "labels", where, "the right token at each position, -100 elsewhere")
        check_count(labels, rows, "labels", where)
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            raise InputError(f"'labels' of {where} is {kind_of(labels)} and must be whole numbers [samples, tokens].")
        wrong = (labels < 0) & (labels != IGNORED_LABEL)
        if wrong.any():
            raise InputError(
                f"'labels' of {where} has {labels[wrong][0]}: tokens count from 0, and {IGNORED_LABEL} means none."
            )
        if labels.size and (labels == IGNORED_LABEL).all():
            raise InputError(f"'labels' of {where} is {IGNORED_LABEL} everywhere: no token is asked for.")
        return Targets(labels.astype(np.int64))

    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """Prediction and log-probability of the label at each position asked for."""
        labels = dataset.labels[rows]
        logits = _token_logits(outputs, labels.shape)
        row, position = np.nonzero(labels != IGNORED_LABEL)
        wanted, scores = labels[row, position], logits[row, position]
        _check_vocabulary(wanted, scores, dataset.where)
        return {
            "right": label_ranks(scores, wanted) == 0,
            "predicted": scores.argmax(axis=1),
            "log_probability": log_probabilities(scores, wanted)[0],
            "undefined": np.isnan(scores).any(axis=1),
            "sample": row + rows.start,
        }

    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """Accuracy and loss over tokens, and agreement with the clean model."""
        defined = ~kept["undefined"]
        usable = ~np.isnan(kept["log_probability"])
        metrics = {
            "accuracy": _share(kept["right"] & defined),
            "loss": _mean(-kept["log_probability"][usable]),
            "agreement": _share((kept["predicted"] == clean["predicted"]) & defined & ~clean["undefined"]),
        }
        return Measured(metrics, 0, len(np.unique(kept["sample"][~defined])))

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """Token by token: prediction, whether it is right, and the logarithm of the label's probability."""
        return {
            "sample": kept["sample"].astype(np.int32),
            "predicted": np.where(kept["undefined"], -1, kept["predicted"]).astype(np.int32),
            "correct": kept["right"] & ~kept["undefined"],
            "log_probability": kept["log_probability"].astype(np.float32),
        }


@dataclass(frozen=True)
class Similarity(Task):
    """How similar two texts are, as the cosine of their embeddings.

    An embedding is the output `sentence_embedding` `[rows, width]`, or the mean of `last_hidden_state` (or the first
    output) `[rows, tokens, width]` over the tokens of the attention mask.
    """

    kind: ClassVar[str] = "similarity"
    primary: ClassVar[str] = "spearman"

    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """`labels`, numbers `[pairs]`: the right similarity. Two rows belong to each pair, as `sample` `[rows]` says.

        Without `sample`, rows 0 and 1 are the first pair, 2 and 3 the second, and so on.
        """
        sample = _sample_of_rows(arrays, rows, where, np.arange(rows) // 2)
        if (np.bincount(sample, minlength=1) != 2).any():
            raise InputError(f"{where} has {rows} rows, and two of them must belong to each pair.")
        labels = one_per_sample(_wanted(arrays, "labels", where, "the right similarity of each pair"))
        if labels.ndim != 1 or labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
            raise InputError(f"'labels' of {where} is {kind_of(labels)} and must be one number for each pair.")
        check_count(labels, rows // 2, "labels", where)
        per_row = {"sample": sample}
        if "attention_mask" in arrays:
            per_row["attention_mask"] = arrays["attention_mask"]
        return Targets(labels.astype(np.float64), per_row)

    def outputs(self, session: Any) -> list[str]:
        """The embedding, or the last hidden state."""
        return [_pick_output(session, ("sentence_embedding", "last_hidden_state"))]

    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """The embedding of each row."""
        (name, hidden), mask = next(iter(outputs.items())), dataset.targets.get("attention_mask")
        hidden = _as_float(hidden)
        if hidden.ndim == 2:
            return {"embedding": hidden}
        if hidden.ndim != 3 or (mask is not None and mask[rows].shape != hidden.shape[:2]):
            raise InputError(
                f"Output '{name}' of the model is of shape {list(hidden.shape)}: similarity needs [rows, width], or "
                "[rows, tokens, width] with as many tokens as 'attention_mask'."
            )
        weights = np.ones(hidden.shape[:2]) if mask is None else mask[rows].astype(np.float64)
        hidden = np.where(weights[..., None] == 0, 0, hidden)  # of padding, which may be anything: 0 x NaN is NaN
        pooled = np.einsum("rtw,rt->rw", hidden, weights) / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        return {"embedding": pooled.astype(np.float32)}

    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """Rank correlation of the cosines with the labels, and the error of the embeddings."""
        cosines = self._cosines(kept, dataset)
        defined = ~np.isnan(cosines)
        metrics = {
            "spearman": spearman(cosines[defined], dataset.labels[defined]),
            "output_snr_db": _snr(clean["embedding"], kept["embedding"]),
        }
        return Measured(metrics, 0, int((~defined).sum()))

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """The cosine of each pair."""
        return {"predicted": self._cosines(kept, dataset).astype(np.float32)}

    def _cosines(self, kept: Kept, dataset: DataSet) -> Array:
        pairs = kept["embedding"].astype(np.float64).reshape(len(dataset.labels), 2, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = pairs / np.linalg.norm(pairs, axis=2, keepdims=True)
        return np.asarray((unit[:, 0] * unit[:, 1]).sum(axis=1))


@dataclass(frozen=True)
class Arrays(Task):
    """Any output, compared with that of the clean model; it needs no labels.

    The outputs of the whole set are kept twice, of the clean model and of the trial.

    Args:
        output: name of the output; empty for `logits`, or the first output if none is so named.
    """

    output: str = ""
    kind: ClassVar[str] = "arrays"
    primary: ClassVar[str] = "output_snr_db"

    def targets(self, arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
        """Nothing: a label that there may be is not used."""
        return Targets(np.zeros(rows, np.int64))

    def outputs(self, session: Any) -> list[str]:
        """The output."""
        return [_pick_output(session, ("logits",), self.output)]

    def keep(self, outputs: Mapping[str, Array], dataset: DataSet, rows: slice) -> Kept:
        """The output."""
        (name, output), count = next(iter(outputs.items())), rows.stop - rows.start
        if output.ndim == 0 or len(output) != count or output.dtype.kind != "f":
            raise InputError(
                f"Output '{name}' of the model is {kind_of(output)} for {count} samples: it must be real numbers with "
                "one row for each sample."
            )
        return {"output": _as_float(output)}

    def measure(self, kept: Kept, dataset: DataSet, clean: Kept) -> Measured:
        """Signal to noise of the output, and its relative error."""
        defined = _finite_rows(kept["output"])
        both = defined & _finite_rows(clean["output"])
        metrics = {
            "output_snr_db": _snr(clean["output"], kept["output"]),
            "relative_error": _mean(relative_errors(clean["output"][both], kept["output"][both])),
        }
        return Measured(metrics, 0, int((~defined).sum()))

    def outcomes(self, kept: Kept, dataset: DataSet, clean: Kept) -> Kept:
        """The relative error of each sample's output; NaN where it is not finite."""
        with np.errstate(invalid="ignore"):
            return {"relative_error": relative_errors(clean["output"], kept["output"]).astype(np.float32)}


TASKS: dict[str, type[Task]] = {
    each.kind: each for each in (Classification, QuestionAnswering, MultipleChoice, MaskedTokens, Similarity, Arrays)
}


def task_by_name(name: str) -> Task:
    """A task from its name with its options, such as `multiple_choice:normalize=tokens`.

    Raises:
        InputError: there is no such task or option, or a value is wrong.
    """
    kind, _, rest = name.partition(":")
    if kind not in TASKS:
        raise InputError(f"There is no task '{kind}'{suggestion(kind, TASKS)}: choose one of {', '.join(TASKS)}.")
    types = {each.name: get_type_hints(TASKS[kind])[each.name] for each in fields(TASKS[kind])}  # type: ignore[arg-type]
    options: dict[str, Any] = {}
    for setting in filter(None, rest.split(",")):
        option, _, text = setting.partition("=")
        if option not in types:
            raise InputError(f"Task {kind} has no option '{option}' (it has {listing(types)}).")
        allowed = get_args(types[option])
        try:
            options[option] = int(text) if types[option] is int else text
        except ValueError:
            raise InputError(f"Option '{option}' of task {kind} is '{text}' and must be a whole number.") from None
        if allowed and text not in allowed:
            raise InputError(f"Option '{option}' of task {kind} is '{text}' and must be one of {', '.join(allowed)}.")
    return TASKS[kind](**options)


def guess_task(session: Any, inputs: Iterable[str], arrays: Mapping[str, Array]) -> Task:
    """The task that outputs and arrays suggest; classification where nothing else does.

    Args:
        session: the model's session.
        inputs: names of the model's inputs.
        arrays: all arrays of the data.
    """
    names = set(_output_names(session))
    if {"start_logits", "end_logits"} <= names:
        return QuestionAnswering()
    if "scored" in arrays:
        return MultipleChoice()
    if "labels" not in arrays:
        return Arrays() if set(arrays) <= set(inputs) else Classification()
    labels = arrays["labels"]
    if labels.ndim == 2 and labels.dtype.kind in "iu" and (labels.shape[1] > 1 or gives_token_scores(session)):
        return MaskedTokens()
    if gives_embeddings(session):
        return Similarity()
    return Classification()


def gives_embeddings(session: Any) -> bool:
    """Whether the model gives hidden states or embeddings instead of scores."""
    names = set(_output_names(session))
    return "logits" not in names and bool(names & {"sentence_embedding", "last_hidden_state"})


def gives_token_scores(session: Any) -> bool:
    """Whether the model gives scores for each token: `logits`, or the first output, of three axes."""
    name = _pick_output(session, ("logits",))
    shape = next(getattr(output, "shape", None) for output in session.get_outputs() if output.name == name)
    return shape is not None and len(shape) == 3


def _is_default(task: Task, field: Any) -> bool:
    return bool(getattr(task, field.name) == field.default)


def _output_names(session: Any) -> list[str]:
    return [output.name for output in session.get_outputs()]


def _pick_output(session: Any, usual: Sequence[str], asked: str = "") -> str:
    names = _output_names(session)
    if asked and asked not in names:
        raise InputError(f"The model has no output '{asked}' (it has {listing(names)}).")
    return asked or next((name for name in usual if name in names), names[0])


def _wanted(arrays: Mapping[str, Array], name: str, where: str, what: str) -> Array:
    if name not in arrays:
        raise InputError(f"{where} has no array '{name}' (it has {listing(arrays)}): add {what}.")
    return arrays[name]


def _sample_of_rows(
    arrays: Mapping[str, Array], rows: int, where: str, default: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """The sample that each row belongs to, `[rows]`, ascending from 0 without a gap."""
    if "sample" not in arrays and default is not None:
        return default
    sample = _wanted(arrays, "sample", where, "the index of the sample that each row belongs to")
    check_count(sample, rows, "sample", where)
    if sample.ndim != 1 or sample.dtype.kind not in "iu":
        raise InputError(f"'sample' of {where} is {kind_of(sample)} and must be whole numbers [rows].")
    sample = sample.astype(np.int64)
    if rows and (sample[0] != 0 or not np.isin(np.diff(sample), (0, 1)).all()):
        raise InputError(f"'sample' of {where} must count from 0 upwards, with the rows of a sample side by side.")
    return sample


def _best_spans(
    start: NDArray[np.float64], end: NDArray[np.float64], inside: NDArray[np.bool_], longest: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Score, first and last token of the best span of each row within the context, each `[rows]`."""
    rows, tokens = start.shape
    start, end = np.where(inside, start, -np.inf), np.where(inside, end, -np.inf)
    best, row = np.full(rows, -np.inf), np.arange(rows)
    first, last = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for further in range(min(longest, tokens)):
        with np.errstate(invalid="ignore"):
            scores = start[:, : tokens - further] + end[:, further:]
        scores[np.isnan(scores)] = -np.inf  # infinity and minus infinity: no span
        at = scores.argmax(axis=1)
        better = scores[row, at] > best
        best = np.where(better, scores[row, at], best)
        first, last = np.where(better, at, first), np.where(better, at + further, last)
    return best, first, last


def _answer_scores(answers: Sequence[str | None], dataset: DataSet) -> Array:
    """F1 and exact match of each answer, `[2, samples]`; 0 where there is none."""
    pairs = zip(answers, dataset.labels, strict=True)
    return np.array([(0.0, 0.0) if each is None else answer_scores(each, right) for each, right in pairs]).T


def _token_logits(outputs: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    name, logits = next(iter(outputs.items()))
    if logits.ndim != 3 or logits.shape[:2] != shape:
        raise InputError(
            f"Output '{name}' of the model is of shape {list(logits.shape)} for {shape[0]} rows of {shape[1]} tokens: "
            "this task needs the scores of the vocabulary for each token."
        )
    return _as_float(logits)


def _check_vocabulary(ids: Array, logits: Array, where: str) -> None:
    if len(ids) and ids.max() >= logits.shape[-1]:
        raise InputError(f"{where} has token {ids.max()}, but the model has scores for {logits.shape[-1]}.")


def _as_float(array: Array) -> Array:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _finite_rows(array: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(array).all(axis=tuple(range(1, array.ndim))))


def _snr(clean: Array, outputs: Array) -> float:
    """Over the rows that are finite in both."""
    rows = _finite_rows(outputs) & _finite_rows(clean)
    return output_snr_db(clean, outputs) if rows.all() else output_snr_db(clean[rows], outputs[rows])


def _share(right: Array) -> float:
    return int(np.count_nonzero(right)) / len(right)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
