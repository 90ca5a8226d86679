"""Training for a chip: what is learned, what is refused, and that an interruption changes nothing."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("transformers", reason="needs the extra 'train'")
pytest.importorskip("accelerate", reason="needs the extra 'train'")

from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import emu
from emu.cli import app
from emu.errors import InputError
from emu.train import losses
from emu.train.cdeit import CDeiTForImageClassification
from emu.train.finetuning import Finetuned, finetune
from emu.train.noise import Chip
from emu.train.presets import PRESETS
from emu.train.settings import Finetuning
from emu.train.trainer import ChipTrainer
from tests.train import tiny

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
DIGITAL: dict[str, Any] = {**SHORT, "device": None}
# Every source of chance: order, augmentation, dropped weights, blocks and strength, chips.
CHANCE: dict[str, Any] = {
    **SHORT,
    "augmentation": {"mixup": 0.3, "erasing": 0.5, "flip": True, "crop_padding": 1},
    "strength_schedule": "random",
    "drop_connect": 0.1,
    "drop_path_rate": 0.3,
}


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """Every training collects garbage, which takes long among all that the tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def write_images(path: Path, samples: int = 40, seed: int = 0, classes: int = 5, **arrays: Any) -> Path:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, classes, samples)
    labels[:classes] = range(classes)
    pixels = chance.normal(size=(samples, 3, 16, 16)).astype(np.float32) + 0.2 * labels[:, None, None, None]
    np.savez(path, pixel_values=pixels.astype(np.float32), labels=labels, **arrays)
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data: read only."""
    folder = tmp_path_factory.mktemp("given")
    tiny.vit().save_pretrained(folder / "vit")
    tiny.vit(hidden_size=48).save_pretrained(folder / "wide")
    tiny.vit(image_size=24).save_pretrained(folder / "large")
    tiny.vit(num_labels=7).save_pretrained(folder / "seven")
    tiny.vit(initializer_range=0.15).save_pretrained(folder / "other")
    tiny.bert().save_pretrained(folder / "bert")
    CDeiTForImageClassification.from_deit(tiny.vit(), corruptions=3).save_pretrained(folder / "cdeit")
    write_images(folder / "train.npz")
    write_images(folder / "test.npz", 24, 1)
    write_images(folder / "seven.npz", classes=7)
    write_images(folder / "corrupted.npz", corruption=np.arange(40) % 4)
    texts = {name: value.numpy() for name, value in tiny.texts(24).items()}
    np.savez(folder / "texts.npz", **texts, token_type_ids=np.zeros_like(texts["input_ids"]), labels=np.arange(24) % 5)
    return folder


def train(given: Path, output: Path, settings: dict[str, Any] | None = None, **options: Any) -> Finetuned:
    folder, data = options.pop("folder", "vit"), options.pop("data", "train.npz")
    teacher = options.pop("teacher", None)
    return finetune(
        given / folder,
        given / data,
        output,
        Finetuning(**(SHORT if settings is None else settings)),
        teacher=None if teacher is None else given / teacher,
        **options,
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def started(arguments: list[object]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )


# The whole way


def test_a_trained_model_is_exported_rewritten_and_measured_by_commands(given: Path, tmp_path: Path) -> None:
    output = tmp_path / "repaired"
    options = ["--epochs", 2, "--batch-size", 8, "--learning-rate", 1e-3, "--set", "program.sigma=0.3", "--chips", 3]
    data = ["--data", given / "train.npz", "--eval-data", given / "test.npz", "--then-evaluate"]
    result = command(given / "vit", *data, "-o", output, *options)
    assert result.exit_code == 0, result.output
    assert "epoch 2 of 2: loss" in result.output and "40 samples, 12 sites on rram" in result.output
    assert sorted(each.name for each in output.iterdir()) == [
        "config.json", "evaluation.json", "model.onnx", "model.safetensors", "training.json"
    ]  # fmt: skip

    measured = json.loads((output / "evaluation.json").read_text())
    shown = CliRunner().invoke(app, ["export", str(output), "-o", str(tmp_path / "again.onnx")])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "again.onnx").read_bytes() == (output / "model.onnx").read_bytes()
    model = str(tmp_path / "again.onnx")
    CliRunner().invoke(app, ["rewrite", model, "--device", "rram", "--set", "program.sigma=0.3"])
    emulated = str(tmp_path / "again.rram.onnx")
    again = CliRunner().invoke(app, ["evaluate", emulated, "--data", str(given / "test.npz"), "--chips", "3", "--json"])
    found = json.loads(again.output)
    accuracies = found["accuracy"]["per_chip"]
    after = measured["rows"][1]
    assert after["model"] == "after"
    assert after["mean"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    before = emu.rewrite(given_onnx(given), "rram", set={"program.sigma": 0.3})
    gains = [new - old for new, old in zip(accuracies, chip_accuracies(before, given, 3), strict=True)]
    assert measured["gain"]["mean"] == pytest.approx(np.mean(gains), abs=1e-12)


def given_onnx(given: Path) -> Any:
    from emu.train.exporting import example_inputs, onnx_of
    from emu.train.folders import load_model

    model = load_model(given / "vit")
    return onnx_of(model, example_inputs(model))


def chip_accuracies(rewritten: Any, given: Path, chips: int) -> list[float]:
    from emu.evaluation import Bench, Trial

    bench = Bench(rewritten, given / "test.npz")
    return [bench.run(Trial(seed)).accuracy for seed in range(chips)]


@pytest.mark.parametrize("device", ["rram", "pcm_aihwkit"])
def test_accuracy_after_each_epoch_is_that_of_the_held_out_samples_on_chip_0(
    given: Path, tmp_path: Path, device: str
) -> None:
    settings = {**SHORT, "epochs": 1, "device": device, "set": {"program.sigma": 0.3} if device == "rram" else {}}
    result = train(given, tmp_path / "out", settings, evaluation=given / "test.npz")
    from emu.train.exporting import export

    plain = export(tmp_path / "out", tmp_path / "out.onnx").path
    rewritten = emu.rewrite(str(plain), device, set=settings["set"])
    (expected,) = chip_accuracies(rewritten, given, 1)
    found = next(each["eval_accuracy"] for each in result.history if "eval_accuracy" in each)
    assert found == pytest.approx(expected, abs=0 if device == "rram" else 1 / 24)  # a converter's code may lie between


def test_measuring_after_each_epoch_changes_nothing_in_the_training(
    given: Path, tmp_path: Path, unbroken: Path
) -> None:
    train(given, tmp_path / "out", CHANCE, evaluation=given / "test.npz")
    assert weights(tmp_path / "out") == weights(unbroken)


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(
    given: Path, tmp_path: Path, unbroken: Path
) -> None:
    train(given, tmp_path / "again", CHANCE)
    train(given, tmp_path / "other", {**CHANCE, "seed": 1})
    for file in ("model.safetensors", "config.json", "training.json"):
        assert (tmp_path / "again" / file).read_bytes() == (unbroken / file).read_bytes(), file
    assert weights(tmp_path / "other") != weights(unbroken)


def test_texts_are_learned_too(given: Path, tmp_path: Path) -> None:
    result = train(
        given, tmp_path / "out", {**SHORT, "epochs": 10, "learning_rate": 3e-3}, folder="bert", data="texts.npz"
    )
    losses_of_epochs = [each["cross_entropy"] for each in result.history]
    assert losses_of_epochs[-1] < 0.8 * losses_of_epochs[0]


# Losses


@pytest.mark.parametrize("method", ["distillation", "noise", "deit_soft", "deit_hard", "cdeit_soft", "cdeit_hard"])
def test_logged_losses_are_those_of_the_library_on_the_same_batch(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    """One step on all samples without a chip: the student is the model as it was, but for CDeiT's other teacher."""
    monkeypatch.setattr(ChipTrainer, "_get_train_sampler", lambda self, dataset=None: None)  # in order
    is_cdeit = method.startswith("cdeit")
    folder = given / ("cdeit" if is_cdeit else "vit")
    teacher = given / ("vit" if is_cdeit else "other")
    options = {"beta": 0.7, "gamma": 0.3, "temperature": 2.0, "label_smoothing": 0.1, "distillation_weight": 0.4}
    settings = Finetuning(method=method, device=None, epochs=1, batch_size=40, **options)
    data = given / "corrupted.npz"
    result = finetune(folder, data, tmp_path / "out", settings, teacher=None if method == "noise" else teacher)

    from emu.train.folders import load_model

    arrays = {name: torch.from_numpy(value) for name, value in np.load(data).items()}
    inputs, labels = {"pixel_values": arrays["pixel_values"]}, arrays["labels"]
    student, taught_by = load_model(folder).train(), load_model(teacher).eval()
    blocks: dict[bool, list[Any]] = {True: [], False: []}  # of the student, which trains, and the teacher
    for model in (student, taught_by):
        if not is_cdeit:
            for layer in model.vit.encoder.layer:
                layer.register_forward_hook(lambda module, _inputs, y: blocks[module.training].append(y))
    with torch.no_grad():
        out, target = student(**inputs), taught_by(**inputs).logits
    soft = {"temperature": 2.0, "weight": 0.4}
    smoothing = {"label_smoothing": 0.1}
    expected: Any
    if method == "distillation":
        expected = losses.noise_aware_loss(
            out.logits, target, labels, blocks[True], blocks[False], beta=0.7, gamma=0.3, temperature=2.0, **smoothing
        )
    elif method == "noise":
        loss = losses.cross_entropy(out.logits, labels, 0.1)
        expected = losses.LossParts(loss, loss, loss, loss)
    elif method == "deit_soft":
        expected = losses.soft_distillation_loss(out.logits, out.logits, target, labels, **soft, **smoothing)
    elif method == "deit_hard":
        expected = losses.hard_distillation_loss(out.logits, out.logits, target, labels, **smoothing)
    else:
        tokens = (out.cls_logits, out.distillation_logits, out.corruption_logits)
        adjusted = {"adjustment_logits": out.adjustment_logits, **smoothing}
        corruptions = arrays["corruption"]
        if method == "cdeit_soft":
            expected = losses.cdeit_soft_loss(*tokens, target, labels, corruptions, **soft, **adjusted)
        else:
            expected = losses.cdeit_hard_loss(*tokens, target, labels, corruptions, **adjusted)
    (logged,) = result.history
    assert logged["loss"] == pytest.approx(float(expected.total), abs=1e-4)
    for name, value in expected._asdict().items():
        if name in logged:
            assert logged[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    parts = {"noise": {"cross_entropy"}, "distillation": {"cross_entropy", "kl", "mse"}}
    assert parts.get(method, {"labels", "teacher", "corruptions"}) <= set(logged)


def test_distillation_without_weight_on_the_teacher_is_training_with_noise_alone(given: Path, tmp_path: Path) -> None:
    train(given, tmp_path / "distilled", {**CHANCE, "beta": 0.0, "gamma": 0.0})
    train(given, tmp_path / "noise", {**CHANCE, "method": "noise"})
    assert weights(tmp_path / "distilled") == weights(tmp_path / "noise")


def test_without_gamma_the_teacher_may_have_another_width(given: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hidden_size 48, but the student has 32.*--gamma 0"):
        train(given, tmp_path / "out", teacher="wide")
    result = train(given, tmp_path / "out", {**DIGITAL, "gamma": 0.0}, teacher="wide")
    assert {"cross_entropy", "kl"} <= set(result.history[0]) and "mse" not in result.history[0]


def test_batches_are_gathered_to_the_step_of_a_larger_one(given: Path, tmp_path: Path) -> None:
    settings = {**DIGITAL, "method": "noise", "epochs": 1}
    train(given, tmp_path / "whole", settings)
    train(given, tmp_path / "parts", {**settings, "batch_size": 4, "accumulate": 2})
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        if not name.endswith("key.bias"):  # has no gradient but rounding
            torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-5)


def test_a_teacher_of_other_classes_gets_a_head_first(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="has 7 classes, but the student has 5.*--teacher-epochs"):
        train(given, tmp_path / "out", teacher="seven")
    result = train(given, tmp_path / "out", {**DIGITAL, "teacher_epochs": 20}, teacher="seven")
    random_head = train(given, tmp_path / "short", {**DIGITAL, "teacher_epochs": 0.01}, teacher="seven")
    assert result.history[0]["kl"] != random_head.history[0]["kl"]
    assert capsys.readouterr().out == ""  # the loop of the head prints nothing
    assert load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"].shape == (5, 32)


def test_bfloat16_trains_and_keeps_float32_weights(given: Path, tmp_path: Path) -> None:
    for precision in ("bfloat16", "float32"):  # one after the other in one process
        train(given, tmp_path / precision, {**SHORT, "precision": precision})
    exact, short = (load_file(tmp_path / name / "model.safetensors") for name in ("float32", "bfloat16"))
    assert all(tensor.dtype == torch.float32 for tensor in short.values())
    assert any(not torch.equal(exact[name], short[name]) for name in exact)
    torch.testing.assert_close(short["classifier.weight"], exact["classifier.weight"], rtol=0.1, atol=5e-3)


# The chip while training


def test_weights_are_clipped_after_each_step(given: Path, tmp_path: Path) -> None:
    train(given, tmp_path / "fixed", {**SHORT, "clip_weights": ("fixed", 0.1), "only": "*"})
    train(given, tmp_path / "gaussian", {**DIGITAL, "clip_weights": ("gaussian", 2.0), "epochs": 4})
    clean = load_file(given / "vit" / "model.safetensors")
    fixed, gaussian = (load_file(tmp_path / name / "model.safetensors") for name in ("fixed", "gaussian"))
    matrices = [name for name in clean if name.endswith("weight") and clean[name].ndim > 1]
    assert len(matrices) == 14
    for name in matrices:
        assert clean[name].abs().max() > 0.2
        assert fixed[name].abs().max() == np.float32(0.1), name
        spread = lambda tensor: float(tensor.abs().max() / tensor.std())  # noqa: E731
        assert spread(clean[name]) > 2.4 > 2.1 > spread(gaussian[name]), name
    for name in set(clean) - set(matrices):  # digital
        torch.testing.assert_close(fixed[name], clean[name], rtol=0, atol=0.05)


def test_only_weights_on_the_chip_are_clipped(given: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "clip_weights": ("fixed", 0.1), "only": "component=query"}
    train(given, tmp_path / "out", settings)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        if name.endswith("weight") and tensor.ndim > 1:
            assert bool(tensor.abs().max() <= 0.1) == ("query" in name), name


@pytest.mark.parametrize("schedule", ["constant", "linear", "random"])
def test_the_strength_follows_its_schedule(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    seen: list[tuple[bool, float]] = []
    begin = Chip.begin

    def noted(self: Chip, arguments: Any, keywords: Any) -> None:
        seen.append((self.model.training, self.strength))
        begin(self, arguments, keywords)

    monkeypatch.setattr(Chip, "begin", noted)
    settings = {**SHORT, "strength": 2.0, "strength_schedule": schedule}
    train(given, tmp_path / "out", settings, evaluation=given / "test.npz")
    assert {strength for training, strength in seen if not training} == {2.0}  # measured at full strength
    strengths = [strength for training, strength in seen if training]
    assert len(strengths) == 10
    if schedule == "constant":
        assert set(strengths) == {2.0}
    elif schedule == "linear":
        np.testing.assert_allclose(strengths, [0.4, 0.8, 1.2, 1.6, *[2.0] * 6])
    else:
        assert len(set(strengths)) == 10 and 0 <= min(strengths) < 1 < max(strengths) <= 2


# Interruption


class Killed(BaseException):
    """What nothing expects."""


def interrupted(given: Path, output: Path, at_step: int, error: type[BaseException], **options: Any) -> None:
    def progress(done: int, _total: int) -> None:
        if done == at_step:
            raise error

    settings = options.pop("settings", CHANCE)
    with pytest.raises(error):
        train(given, output, settings, progress=progress, **{"save_steps": 2, **options})


@pytest.fixture(scope="module")
def unbroken(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with every source of chance."""
    output = tmp_path_factory.mktemp("unbroken") / "out"
    train(given, output, CHANCE)
    return output


@pytest.fixture(scope="module")
def unbroken_digital(given: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("unbroken") / "digital"
    train(given, output, DIGITAL)
    return weights(output)


@pytest.mark.parametrize("at_step", [3, 6, 10])
def test_a_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    given: Path, tmp_path: Path, unbroken: Path, at_step: int
) -> None:
    """Step 2 is within an epoch, as steps 4 and 6 are; of step 10 only the checkpoint of step 8 was written."""
    output, said = tmp_path / "out", list[str]()
    interrupted(given, output, at_step, KeyboardInterrupt, echo=said.append)
    assert said[-1].startswith("Stopped. The same command with --resume goes on")
    assert not (output / "model.safetensors").exists()
    with pytest.raises(InputError, match="has checkpoints of a training: go on with --resume"):
        train(given, output, CHANCE)
    train(given, output, CHANCE, resume=True)
    assert weights(output) == weights(unbroken)
    assert sorted(each.name for each in output.iterdir()) == ["config.json", "model.safetensors", "training.json"]


def test_a_training_is_resumed_from_the_end_of_an_epoch(given: Path, tmp_path: Path, unbroken: Path) -> None:
    interrupted(given, tmp_path / "out", 6, Killed, save_steps=None)
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-5" / "complete.json").exists()
    train(given, tmp_path / "out", CHANCE, resume=True)
    assert weights(tmp_path / "out") == weights(unbroken)


def test_a_checkpoint_without_its_mark_is_not_used(given: Path, tmp_path: Path, unbroken_digital: bytes) -> None:
    output = tmp_path / "out"
    interrupted(given, output, 7, Killed, settings=DIGITAL)
    last = output / "checkpoints" / "checkpoint-6"
    (last / "complete.json").unlink()
    (last / "model.safetensors").write_bytes(b"half")
    train(given, output, DIGITAL, resume=True)
    assert weights(output) == unbroken_digital


@pytest.mark.parametrize("where", ["_save_optimizer_and_scheduler", "_save_rng_state", "_rotate_checkpoints"])
def test_death_while_a_checkpoint_is_written_costs_that_checkpoint_alone(
    given: Path, tmp_path: Path, unbroken_digital: bytes, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    output, method = tmp_path / "out", getattr(ChipTrainer, where)

    def dies(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.state.global_step == 6:
            raise Killed
        return method(self, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(ChipTrainer, where, dies)
        with pytest.raises(Killed):
            train(given, output, DIGITAL, save_steps=2)
    assert (output / "checkpoints" / "checkpoint-6" / "model.safetensors").exists()
    train(given, output, DIGITAL, resume=True, save_steps=3)
    assert weights(output) == unbroken_digital


def test_death_while_the_model_is_written_leaves_no_model_and_is_resumed(
    given: Path, tmp_path: Path, unbroken_digital: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, replace = tmp_path / "out", os.replace

    def dies(source: Any, target: Any) -> None:
        if Path(target) == output / "training.json":
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dies)
        with pytest.raises(Killed):
            train(given, output, DIGITAL)
    assert not (output / "config.json").exists()
    (output / ".model-left").mkdir()  # as a kill leaves it
    train(given, output, DIGITAL, resume=True)
    assert weights(output) == unbroken_digital
    assert sorted(each.name for each in output.iterdir()) == ["config.json", "model.safetensors", "training.json"]


def test_an_interruption_before_the_first_checkpoint_leaves_nothing(given: Path, tmp_path: Path) -> None:
    said: list[str] = []
    interrupted(given, tmp_path / "out", 1, KeyboardInterrupt, settings=DIGITAL, echo=said.append)
    assert said[-1] == "Stopped before the first checkpoint: the same command begins anew."
    assert not (tmp_path / "out").exists()


def test_only_the_same_training_is_resumed(given: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    interrupted(given, output, 5, KeyboardInterrupt)
    changed = {**CHANCE, "learning_rate": 0.5, "set": {"program.sigma": 0.2}}
    with pytest.raises(
        InputError, match=r"set was \{\} and is \{'program.sigma': 0.2\}; learning_rate was 0.001 and is"
    ):
        train(given, output, changed, resume=True)
    with pytest.raises(InputError, match="begun with other training samples"):
        train(given, output, CHANCE, resume=True, samples=30)
    with pytest.raises(InputError, match="begun with another model"):
        train(given, output, CHANCE, resume=True, folder="other")
    with pytest.raises(InputError, match="begun with another teacher"):
        train(given, output, CHANCE, resume=True, teacher="other")
    with pytest.raises(InputError, match="has no interrupted training: leave --resume out"):
        train(given, tmp_path / "none", CHANCE, resume=True)
    assert (output / "checkpoints" / "checkpoint-4" / "complete.json").exists()  # refusals lost nothing


def test_checkpoints_are_read_without_running_code(given: Path, tmp_path: Path) -> None:
    train(given, tmp_path / "out", DIGITAL, save_steps=4, keep_checkpoints=True)
    checkpoints = tmp_path / "out" / "checkpoints"
    assert sorted(each.name for each in checkpoints.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]
    assert not list((tmp_path / "out").rglob("*.bin"))
    torch.load(checkpoints / "checkpoint-10" / "optimizer.pt", weights_only=True)
    torch.load(checkpoints / "checkpoint-10" / "scheduler.pt", weights_only=True)


DIES_WRITING = """
import os, signal, sys
from emu.train.trainer import ChipTrainer
save = ChipTrainer._save_rng_state
def dies(self, folder):
    if self.state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)
ChipTrainer._save_rng_state = dies
from emu.cli import main
main()
"""
OPTIONS = [
    "--epochs", 2, "--batch-size", 8, "--learning-rate", 1e-3, "--mixup", 0.3, "--erasing", 0.5, "--flip",
    "--crop-padding", 1, "--strength-schedule", "random", "--drop-connect", 0.1, "--drop-path-rate", 0.3,
    "--save-steps", 2,
]  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_its_command(given: Path, tmp_path: Path, unbroken: Path) -> None:
    output = tmp_path / "out"
    arguments = [given / "vit", "--data", given / "train.npz", "-o", output, *OPTIONS]
    process = started(["-c", DIES_WRITING, "finetune", *arguments])
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert [each.name for each in (output / "checkpoints").glob("*/complete.json")] == ["complete.json"] * 2
    result = command(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert weights(output) == weights(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("after", [0.0, 0.04, 0.1, 0.25])
def test_a_process_that_ends_at_any_moment_is_resumed(
    given: Path, tmp_path: Path, unbroken: Path, how: signal.Signals, after: float
) -> None:
    output = tmp_path / "out"
    arguments = [given / "vit", "--data", given / "train.npz", "-o", output, *OPTIONS]
    process = started(["-m", "emu", "finetune", *arguments])
    for _ in range(12000):
        if list(output.glob("checkpoints/*/complete.json")) or process.poll() is not None:
            break
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(how)
    said, errors = process.communicate(timeout=60)
    is_done = (output / "config.json").exists()
    if how is signal.SIGINT and not is_done:
        assert process.returncode == 130 and "Traceback" not in errors, errors
        assert "--resume" in said
    if not is_done:
        result = command(*arguments, "--resume")
        assert result.exit_code == 0, result.output
    assert weights(output) == weights(unbroken)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "seven.npz"], "has class 6, but the model has 5 classes"),
        (["--teacher", "seven"], "has 7 classes, but the student has 5"),
        (["--teacher", "wide"], "hidden_size 48, but the student has 32"),
        (["--teacher", "large"], "has image_size 24, but the student has 16"),
        (["--teacher", "bert"], "they share inputs"),
        (["--teacher", "vit", "--method", "noise"], "'noise' has no teacher"),
        (["--teacher-epochs", "1", "--method", "noise"], "'noise' has none"),
        (["--fresh"], "A student with random weights has nothing to learn from itself: give a --teacher"),
        (["--learning-rate", "1e6"], "learning_rate is 1000000.0 and must be 0 to 100"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--epochs", "0"], "epochs is 0"),
        (["--drop-connect", "1"], "drop_connect is 1"),
        (["--device", "no_such"], "There is no device 'no_such'"),
        (["--device", "prime"], "calibrated in a rewritten model, which training does not have"),
        (["--device", "none", "--only", "layer=0"], "Without a device there is no chip for only"),
        (["--only", "component=nothing"], "nothing"),
        (["--set", "program.sigma=-1"], "sigma"),
        (["--clip-weights", "fixed"], "must be fixed:LIMIT or gaussian:FACTOR"),
        (["--clip-weights", "round:1"], "must be 'fixed' or 'gaussian'"),
        (["--randaugment", "2,9"], "give --mean and --std"),
        (["--randaugment", "2,9", "--mean", "0.5", "--std", "0.5"], "this mean and std make the pixels"),
        (["--randaugment", "two"], "must be two whole numbers"),
        (["--mixup", "-1"], "mixup is -1"),
        (["--method", "cdeit-hard"], "trains a corruption token, which ViTForImageClassification does not have"),
        (["--preset", "no_such"], "There is no preset 'no_such': choose corrupted_image_distillation"),
        (["--samples", "99"], "has 40, so ask for 1 to 40"),
        (["--then-evaluate"], "needs held-out samples"),
        (["--then-evaluate", "--eval-data", "test.npz", "--device", "none"], "measures on a chip"),
        (["--eval-data", "seven.npz"], "has class 6"),
        (["--eval-data", "texts.npz"], "has no array 'pixel_values'"),
        (["--resume"], "has no interrupted training"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_writes_nothing(
    given: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    files = [str(given / each) if (given / each).exists() else each for each in arguments]
    data = [] if "--data" in arguments else ["--data", given / "train.npz"]
    result = command(given / "vit", *data, "-o", tmp_path / "out", *files)
    assert result.exit_code == 2, result.output
    assert sentence in result.output and "Traceback" not in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_texts_cannot_be_augmented_as_images(given: Path, tmp_path: Path) -> None:
    result = command(given / "bert", "--data", given / "texts.npz", "-o", tmp_path / "out", "--mixup", "0.3")
    assert result.exit_code == 2
    assert "texts.npz holds no images, and augmentation is for images: leave it out" in result.output


def test_a_corruption_token_needs_to_know_the_corruptions(given: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "method": "cdeit_hard"}
    with pytest.raises(InputError, match="needs an array 'corruption', one whole number for each sample"):
        train(given, tmp_path / "out", settings, folder="cdeit", teacher="vit")
    write_images(tmp_path / "more.npz", corruption=np.arange(40) % 5)
    with pytest.raises(InputError, match="has kind 4, but the model has 3 kinds of corruption"):
        train(given, tmp_path / "out", settings, folder="cdeit", teacher="vit", data=tmp_path / "more.npz")


def test_a_model_that_is_read_is_never_written(given: Path, tmp_path: Path) -> None:
    before = weights(given / "vit"), weights(given / "wide")
    for output in ("vit", "wide"):
        with pytest.raises(InputError, match="is a model that is read here: give another folder"):
            train(given, given / output, {**SHORT, "gamma": 0.0}, teacher="wide", overwrite=True)
    assert (weights(given / "vit"), weights(given / "wide")) == before


def test_an_existing_model_is_replaced_only_when_asked_for_and_whole(given: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    train(given, output, DIGITAL, folder="bert", data="texts.npz")
    (output / "evaluation.json").write_text("{}")
    (output / "vocab.txt").write_text("of the model before")
    (output / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="has a model already: give another folder with -o, or --overwrite"):
        train(given, output)
    train(given, output, DIGITAL, overwrite=True)
    assert sorted(each.name for each in output.iterdir()) == [
        "config.json", "model.safetensors", "notes.txt", "training.json"
    ]  # fmt: skip
    assert json.loads((output / "config.json").read_text())["model_type"] == "vit"


def test_a_loss_that_is_no_number_stops_with_its_step_and_leaves_nothing(given: Path, tmp_path: Path) -> None:
    model = tiny.vit()
    with torch.no_grad():
        model.classifier.bias[0] = torch.inf
    model.save_pretrained(tmp_path / "infinite")
    data = ["--data", given / "train.npz", "-o", tmp_path / "out", "--batch-size", "8"]
    result = command(tmp_path / "infinite", *data)
    assert result.exit_code == 2
    assert "The loss is nan at step 1 (epoch 0.00): lower the learning rate" in result.output
    assert not (tmp_path / "out").exists()


def test_weights_that_the_last_step_made_infinite_are_not_written(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(done: int, total: int) -> None:
        if done == total:
            trainer[0].model.classifier.weight.data.fill_(torch.nan)

    trainer: list[Any] = []
    begin = ChipTrainer.__init__
    monkeypatch.setattr(
        ChipTrainer, "__init__", lambda self, *rest, **named: (trainer.append(self), begin(self, *rest, **named))[1]
    )
    with pytest.raises(InputError, match="The last step made classifier.weight infinite: lower the learning rate"):
        train(given, tmp_path / "out", DIGITAL, progress=progress)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(("kilobytes", "file"), [(20, "model.safetensors"), (100, "optimizer.pt")])
def test_a_full_disk_leaves_nothing_half_written(
    given: Path, tmp_path: Path, kilobytes: int, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files makes writers fail as on a full disk: that of safetensors, and that of PyTorch."""
    resource = pytest.importorskip("resource")
    failed, remove = [], shutil.rmtree

    def removed(folder: Any, **keywords: Any) -> None:
        failed.append(sorted(each.name for each in Path(folder).iterdir() if each.stat().st_size))
        remove(folder, **keywords)

    monkeypatch.setattr("emu.train.trainer.shutil", SimpleNamespace(rmtree=removed))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(*_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, limits[1]))

    try:
        with pytest.raises(InputError, match="checkpoint-5 cannot be written: .*Make room"):
            train(given, tmp_path / "out", DIGITAL, progress=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("model.safetensors" in failed[0]) == (file == "optimizer.pt"), failed
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_while_the_model_is_written_loses_no_checkpoint(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken_digital: bytes
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def full(self: Any, folder: Any, *arguments: Any, **keywords: Any) -> None:
        if "checkpoint-" not in str(folder):
            raise OSError(28, "No space left on device")
        save(self, folder, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(InputError, match="No space left on device. Make room, then --resume"):
            train(given, tmp_path / "out", DIGITAL)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["checkpoints"]
    train(given, tmp_path / "out", DIGITAL, resume=True)
    assert weights(tmp_path / "out") == unbroken_digital


# What else is written, presets


def test_tensorboard_gets_the_losses_of_each_epoch(given: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(given, tmp_path / "out", DIGITAL, tensorboard=True, evaluation=given / "test.npz")
    read = events.EventAccumulator(str(tmp_path / "out" / "logs"))
    read.Reload()
    assert {"train/loss", "train/kl", "train/mse", "eval/accuracy"} <= set(read.Tags()["scalars"])
    assert [each.step for each in read.Scalars("train/loss")] == [5, 10]


def test_a_preset_gives_the_settings_of_its_study_but_for_those_that_are_given(given: Path, tmp_path: Path) -> None:
    options = [
        "--preset",
        "corrupted_image_distillation",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--mixup",
        "0.1",
        "--device",
        "none",
    ]
    result = command(given / "vit", "--data", given / "train.npz", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    used = json.loads((tmp_path / "out" / "training.json").read_text())["settings"]
    study = PRESETS["corrupted_image_distillation"]
    assert used["batch_size"] * used["accumulate"] == study.batch_size
    assert used["learning_rate"] == pytest.approx(study.learning_rate())
    assert used["augmentation"] == {"mixup": 0.1, "erasing": study.erasing}
    assert (used["epochs"], used["warmup"], used["temperature"]) == (1, 1.0, study.temperature)


def test_images_of_a_folder_are_randaugmented_by_the_processor_of_the_model(given: Path, tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    chance = np.random.default_rng(0)
    for label in range(5):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for i in range(3):
            picture = chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            pil.fromarray(picture).save(tmp_path / "images" / str(label) / f"{i}.png")
    tiny.vit().save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "rescale_factor": 1 / 127.5}
    processor |= {"image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    options = ["--randaugment", "2,9", "--epochs", "1", "--batch-size", "5", "--device", "none"]
    result = command(tmp_path / "vit", "--data", tmp_path / "images", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == processor


def write_folders(folder: Path, names: str) -> Path:
    pil = pytest.importorskip("PIL.Image")
    for label, name in enumerate(names.split()):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pil.new("RGB", (16, 16), (40 * label, 10 * i, 0)).save(folder / name / f"{i}.png")
    return folder


def test_classes_are_the_models_and_names_that_do_not_match_are_refused(given: Path, tmp_path: Path) -> None:
    names = dict(enumerate(["Zebra", "Ape", "Sea Lion", "Cat", "Dog"]))
    model = tiny.vit(id2label=names, label2id={name: number for number, name in names.items()})
    model.save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    short = ["--epochs", "1", "--batch-size", "5", "--device", "none"]
    half = write_folders(tmp_path / "half", "zebra ape sea_lion cat wolf")
    refused = command(tmp_path / "vit", "--data", half, "-o", tmp_path / "out", *short)
    assert refused.exit_code == 2 and "1 of 5 classes" in refused.output and "(wolf)" in refused.output
    assert not (tmp_path / "out").exists()
    whole = write_folders(tmp_path / "whole", "zebra ape sea_lion cat dog")
    trained = command(tmp_path / "vit", "--data", whole, "-o", tmp_path / "out", *short)
    assert trained.exit_code == 0 and f"classes  5, by {tmp_path / 'vit' / 'config.json'}" in trained.output


def test_a_trained_model_names_the_classes_that_its_configuration_did_not(given: Path, tmp_path: Path) -> None:
    tiny.vit().save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    folders = write_folders(tmp_path / "images", "zebra ape sea_lion cat dog")
    short = ["--epochs", "1", "--batch-size", "5", "--device", "none"]
    trained = command(tmp_path / "vit", "--data", folders, "-o", tmp_path / "out", *short)
    assert "classes  5, by the alphabet of the names in the data" in trained.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"]["zebra"] == 4


# Several processes

NOTES_NOISE = """
import os, sys
from emu.train.noise import Chip
notes, begin = sys.argv.pop(), Chip.begin
def noted(self, arguments, keywords):
    begin(self, arguments, keywords)
    with open(notes + os.environ["RANK"], "a") as file:
        file.write(f"{self.drawn.seed} {self.drawn.sample}\\n")
Chip.begin = noted
from emu.cli import main
main()
"""


@pytest.mark.slow
def test_two_processes_train_one_model_on_different_chips(given: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(NOTES_NOISE)
    outputs, notes = [tmp_path / "first", tmp_path / "second"], tmp_path / "notes"
    for output in outputs:
        process = started(
            ["-m", "torch.distributed.run", "--nproc-per-node", 2, script, "finetune", given / "vit",
             "--data", given / "train.npz", "--eval-data", given / "test.npz", "--then-evaluate", "--chips", 2,
             "-o", output, "--epochs", 2, "--batch-size", 4, "--teacher-epochs", 1, notes]
        )  # fmt: skip
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert said.count("Wrote") == 2 and said.count("epoch 2 of 2: loss") == 1  # the folder, and its export
    assert weights(outputs[0]) == weights(outputs[1])
    noise = [[line.split() for line in Path(f"{notes}{rank}").read_text().splitlines()] for rank in (0, 1)]
    chips = [[seed for seed, _sample in each if seed != "0"] for each in noise]
    assert len(chips[0]) == len(chips[1]) == 2 * 10
    assert not set(chips[0]) & set(chips[1])
    samples = [[int(sample) for seed, sample in each if seed == "0"][:3] for each in noise]
    assert samples == [[0, 8, 16], [4, 12, 20]]  # batches in turn
