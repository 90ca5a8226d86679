"""Corrupted data reach the model before its own preparation, and copies on disk hold the same pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import emu.evaluation.corrupted as corrupted_module
from emu import Bench, Trial
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import DataSource
from emu.evaluation.corrupted import write_corrupted
from emu.evaluation.corruptions import CORRUPTIONS, Corruption, corrupt
from emu.evaluation.pixels import corrupt_pixels

from .tiny import image_model, save_image_processor, token_model

pytest.importorskip("scipy", reason="needs the extra 'data'")
pillow = pytest.importorskip("PIL.Image", reason="needs the extra 'data'")

DIGITS = {"mean": 0.4705882, "std": 0.4705882}  # how the pixels of the demo were normalized
NAMES = ("red", "green", "blue")


def pictures(count: int = 6, channels: int = 3) -> np.ndarray:
    """Uint8 `[count, 12, 12, channels]`, each brightest in the channel of its class, its index modulo 3."""
    pixels = np.random.Generator(np.random.PCG64(1)).integers(60, 120, (count, 12, 12, channels), np.uint8)
    for index in range(count):
        pixels[index, ..., index % channels] += 70
    return pixels


def folder_of(path: Path, pixels: np.ndarray) -> Path:
    for index, picture in enumerate(pixels):
        (path / NAMES[index % 3]).mkdir(parents=True, exist_ok=True)
        pillow.fromarray(picture.squeeze()).save(path / NAMES[index % 3] / f"{index // 3}.png")
    (path / "labels.json").write_text(json.dumps(NAMES))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pictures", pictures())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="needs the extra 'data'")
    path = tmp_path_factory.mktemp("colors")
    save_image_processor(path, 12)
    onnx.save(image_model(3, 12, 3), path / "model.onnx")
    return path / "model.onnx"


def emu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        write_corrupted(*arguments, **options)
    return str(caught.value)


FOG = Corruption("fog", 3)


class TestPixels:
    @pytest.mark.parametrize("name", ["gaussian_noise", "fog", "jpeg_compression"])
    @pytest.mark.parametrize("layout", ["gray", "first", "last"])
    @pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
    def test_normalized_pixels_are_corrupted_as_pictures(self, name: str, layout: str, kind: str) -> None:
        clean = pictures(5)[..., 0] if layout == "gray" else pictures(5)
        expected = corrupt(clean, name, 2, seed=4)
        mean, std = (0.3, 0.2) if layout == "gray" else ([0.3, 0.4, 0.5], [0.2, 0.3, 0.1])
        arranged = [np.moveaxis(each, -1, 1) if layout == "first" else each for each in (clean, expected)]
        corruption = Corruption(name, 2, 4)
        if kind == "uint8":
            assert np.array_equal(corrupt_pixels(arranged[0], corruption), arranged[1])
            return
        shape = (3, 1, 1) if layout == "first" else (-1,)
        shift, scale = np.reshape(mean, shape if layout == "first" else (-1,)), np.reshape(std, shape)
        before, after = (((each / 255 - shift) / scale).astype(kind) for each in arranged)
        got = corrupt_pixels(before, corruption, mean, std)
        assert got.dtype == kind and got == pytest.approx(after, abs=1e-5)

    def test_large_arrays_are_corrupted_as_a_whole(self) -> None:
        clean = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (600, 8, 8), np.uint8)
        got = corrupt_pixels(clean, Corruption("gaussian_noise", 1))
        assert np.array_equal(got, corrupt(clean, "gaussian_noise", 1))

    @pytest.mark.parametrize(
        ("pixels", "options", "sentence"),
        [
            (np.full((1, 1, 8, 8), -1.0), {}, "levels from -1 to -1, and pictures have 0 to 1: give the mean and std"),
            (np.full((1, 1, 8, 8), np.nan), {}, "levels from nan"),
            (np.zeros((1, 3, 8, 8)), {"mean": [0, 0]}, "one for each of 3 channels"),
            (np.zeros((1, 3, 8, 8)), {"std": 0.0}, "std is zero or less"),
            (np.zeros((1, 8, 8), np.uint8), {"mean": 0.5}, "leave them out"),
            (np.zeros((1, 8, 8), np.int64), {}, r"int64 \[1, 8, 8\] and holds no pictures"),
            (np.zeros((1, 5, 8, 8)), {}, "holds no pictures"),
        ],
    )
    def test_other_arrays_are_refused(self, pixels: np.ndarray, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            corrupt_pixels(pixels, FOG, **options)


class TestData:
    def test_the_model_gets_corrupted_pictures_through_its_processor(self, model: Path, folder: Path) -> None:
        bench = Bench(model, DataSource(folder, corruption="impulse_noise:5:2"))
        in_turn = pictures()[[2, 1, 0, 5, 4, 3]]  # blue, green, red, blue, green, red
        expected = corrupt(in_turn, "impulse_noise", 5, seed=2) / 255
        assert bench.dataset.arrays["pixel_values"] == pytest.approx(np.moveaxis(expected, -1, 1), abs=1e-6)
        assert bench.dataset.where == f"{folder} (impulse_noise:5:2)"

    def test_arrays_are_corrupted_too(self) -> None:
        clean = Bench(model_path("digits_vit"), data_path("digits_vit"), samples=20)
        foggy = clean.with_data(DataSource(data_path("digits_vit"), corruption="fog:5", **DIGITS), 20)
        expected = corrupt_pixels(clean.dataset.arrays["pixel_values"], Corruption("fog", 5), **DIGITS)
        assert np.array_equal(foggy.dataset.arrays["pixel_values"], expected)
        assert foggy.clean.accuracy < clean.clean.accuracy

    def test_a_bench_on_other_data_keeps_its_session_and_its_own_results(self) -> None:
        bench = Bench(model_path("digits_vit"), data_path("digits_vit"), device="rram", only="*", samples=20)
        before, trial = bench.clean, Trial(3)
        other = bench.with_data(DataSource(data_path("digits_vit"), corruption="fog:5", **DIGITS), 10)
        assert other.session is bench.session and other.task is bench.task
        assert other.clean.samples == 10 and other.arguments["samples"] == 10
        assert other.arguments["data_options"]["corruption"] == "fog:5"
        assert bench.clean is before and "corruption" not in bench.arguments["data_options"]
        assert other.fingerprint()["data"] != bench.fingerprint()["data"]
        assert other.fingerprint()["model"] == bench.fingerprint()["model"]
        source = DataSource(data_path("digits_vit"), corruption="fog:5", **DIGITS)
        fresh = Bench(model_path("digits_vit"), source, device="rram", only="*", samples=10)
        assert other.run(trial) == fresh.run(trial)

    def test_what_has_no_pictures_is_refused(self, tmp_path: Path) -> None:
        texts = tmp_path / "texts.jsonl"
        texts.write_text('{"text": "a cat", "label": 0}\n')
        words = token_model(np.zeros((30, 2)), [np.eye(2)], ["logits"], mean=True)
        with pytest.raises(InputError, match="'fog:3' is for images"):
            Bench(words, DataSource(texts, corruption="fog:3"))
        np.savez(tmp_path / "ids.npz", input_ids=np.zeros((2, 5), np.int64), labels=np.zeros(2, np.int64))
        with pytest.raises(InputError, match="one array of pictures"):
            Bench(words, DataSource(tmp_path / "ids.npz", corruption="fog:3"))

    def test_a_processor_needs_no_mean(self, model: Path, folder: Path) -> None:
        with pytest.raises(InputError, match="'mean' is for arrays of pixels"):
            Bench(model, DataSource(folder, corruption="fog:3", mean=0.5))

    def test_the_command_says_what_was_corrupted(self) -> None:
        options = ("--data", data_path("digits_vit"), "--samples", 30, "--corrupt", "contrast:5")
        result = emu("evaluate", model_path("digits_vit"), *options, "--mean", DIGITS["mean"], "--std", DIGITS["std"])
        assert "(contrast:5), 30 samples" in result.stdout
        assert "levels from -1 to 1" in emu("evaluate", model_path("digits_vit"), *options).stderr


class TestCopies:
    def test_a_copy_of_a_folder_is_evaluated_like_the_folder_corrupted(
        self, tmp_path: Path, model: Path, folder: Path
    ) -> None:
        write_corrupted(DataSource(folder), tmp_path / "noisy", [Corruption("gaussian_noise", 5, 3)])
        one = Bench(model, tmp_path / "noisy").dataset
        other = Bench(model, DataSource(folder, corruption="gaussian_noise:5:3")).dataset
        assert one.digest() == other.digest() and one.classes == other.classes == NAMES
        record = json.loads((tmp_path / "noisy" / "corruption.json").read_text())
        assert record["corruptions"] == ["gaussian_noise:5:3"] and record["data"] == str(folder)

    def test_names_and_gray_pictures_are_kept(self, tmp_path: Path) -> None:
        source = tmp_path / "gray"
        (source / "a").mkdir(parents=True)
        gray = pictures(2, 1)[..., 0]
        pillow.fromarray(gray[0]).save(source / "a" / "one.bmp")
        pillow.fromarray(gray[1]).save(source / "a" / "one.png")
        write_corrupted(DataSource(source), tmp_path / "out", [FOG])
        written = {path.name: np.asarray(pillow.open(path)) for path in (tmp_path / "out" / "a").iterdir()}
        assert sorted(written) == ["one.png", "one.png.png"]  # two files of one stem
        assert np.array_equal(written["one.png"], corrupt(gray, "fog", 3)[0])
        assert not (tmp_path / "out" / "labels.json").exists()

    def test_a_data_set_becomes_a_folder_with_its_classes(self, tmp_path: Path, model: Path) -> None:
        datasets = pytest.importorskip("datasets", reason="needs the extra 'data'")
        names = ["red/ish", "green", "blue"]  # no folder can be called like the first
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        columns = {"img": [pillow.fromarray(each) for each in pictures()], "label": [0, 1, 2, 0, 1, 2]}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
        write_corrupted(DataSource(tmp_path / "saved"), tmp_path / "out", [FOG], samples=5)
        assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["red_ish", "green", "blue"]
        assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")) == [
            "blue/2.png", "green/1.png", "green/4.png", "red_ish/0.png", "red_ish/3.png",
        ]  # fmt: skip
        expected = corrupt(pictures(), "fog", 3)
        assert np.array_equal(np.asarray(pillow.open(tmp_path / "out" / "red_ish" / "3.png")), expected[3])
        assert Bench(model, tmp_path / "out").clean.samples == 5

    def test_a_parquet_table_keeps_numbers_as_classes(self, tmp_path: Path, model: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")
        import io

        import pyarrow

        encoded = []
        for picture in pictures(12):
            pillow.fromarray(picture).save(file := io.BytesIO(), "PNG")
            encoded.append({"bytes": file.getvalue(), "path": None})
        table = {"image": encoded, "label": [index % 3 for index in range(12)]}
        parquet.write_table(pyarrow.table(table), tmp_path / "set.parquet")
        source = DataSource(tmp_path / "set.parquet")
        write_corrupted(source, tmp_path / "out", [Corruption("contrast", 1)])
        assert (tmp_path / "out" / "1" / "10.png").is_file() and (tmp_path / "out" / "0" / "00.png").is_file()
        copied = Bench(model, tmp_path / "out")
        direct = Bench(model, DataSource(tmp_path / "set.parquet", corruption="contrast:1"))
        assert copied.clean.accuracy == direct.clean.accuracy == 1

    def test_arrays_stay_arrays(self, tmp_path: Path) -> None:
        write_corrupted(DataSource(data_path("digits_vit"), **DIGITS), tmp_path / "out.npz", [FOG], samples=7)
        with np.load(data_path("digits_vit")) as clean, np.load(tmp_path / "out.npz") as foggy:
            assert set(foggy) == set(clean)
            assert np.array_equal(foggy["labels"], clean["labels"][:7])
            expected = corrupt_pixels(clean["pixel_values"][:7], FOG, **DIGITS)
            assert np.array_equal(foggy["pixel_values"], expected) and expected.dtype == np.float32

    def test_one_of_several_arrays_can_be_named(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "two.npz", left=pictures(2), right=pictures(2))
        sentence = refusal(DataSource(tmp_path / "two.npz"), tmp_path / "out.npz", [FOG])
        assert "one array of pictures" in sentence and "'left', 'right'" in sentence
        write_corrupted(DataSource(tmp_path / "two.npz", image_column="right"), tmp_path / "out.npz", [FOG])
        with np.load(tmp_path / "out.npz") as written:
            assert np.array_equal(written["left"], pictures(2))
            assert np.array_equal(written["right"], corrupt(pictures(2), "fog", 3))

    def test_several_corruptions_have_folders_by_name_and_severity(self, tmp_path: Path, folder: Path) -> None:
        wanted = [Corruption(name, severity) for name in ("fog", "snow") for severity in (1, 5)]
        steps: list[tuple[int, int]] = []
        written = write_corrupted(
            DataSource(folder), tmp_path / "c", wanted, progress=lambda done, of: steps.append((done, of))
        )
        assert written == [tmp_path / "c" / name / severity for name in ("fog", "snow") for severity in ("1", "5")]
        assert len(list((tmp_path / "c").rglob("*.png"))) == 24 and steps == [(i, 24) for i in range(1, 25)]
        np.savez(tmp_path / "set.npz", x=pictures())
        written = write_corrupted(DataSource(tmp_path / "set.npz"), tmp_path / "d", wanted)
        assert written[3] == tmp_path / "d" / "snow" / "5.npz" and written[3].is_file()


class TestWhole:
    """All of the output or none, and nothing replaced that was not written here."""

    def test_a_failure_leaves_nothing_behind(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_corrupted(DataSource(folder), tmp_path / "out", [FOG])
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
        opened = corrupted_module.open_picture

        def third_fails(table: Any, images: Any, index: int) -> Any:
            if index == 3:
                raise KeyboardInterrupt
            return opened(table, images, index)

        monkeypatch.setattr(corrupted_module, "open_picture", third_fails)
        for target, overwrite in (("out", True), ("new", False)):
            with pytest.raises(KeyboardInterrupt):
                write_corrupted(DataSource(folder), tmp_path / target, [Corruption("snow", 1)], overwrite=overwrite)
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures"]

    def test_another_corruption_replaces_only_what_was_written_here(self, tmp_path: Path, folder: Path) -> None:
        source, out = DataSource(folder), tmp_path / "out"
        write_corrupted(source, out, [FOG])
        (out / "red" / "stale.png").write_bytes(b"")
        assert "exists already" in refusal(source, out, [FOG])
        write_corrupted(source, out, [Corruption("snow", 1)], overwrite=True)
        assert json.loads((out / "corruption.json").read_text())["corruptions"] == ["snow:1"]
        assert not (out / "red" / "stale.png").exists()
        mine = folder_of(tmp_path / "mine", pictures())
        assert "has no corruption.json, so it is not replaced" in refusal(source, mine, [FOG], overwrite=True)
        assert len(list(mine.rglob("*.png"))) == 6

    def test_the_data_are_never_replaced_nor_mixed_with_their_copy(self, tmp_path: Path, folder: Path) -> None:
        for out in (folder, folder / "fog", tmp_path):
            assert "give another output" in refusal(DataSource(folder), out, [FOG], overwrite=True)
        np.savez(tmp_path / "set.npz", x=pictures())
        for out, sentence in (
            (tmp_path / "set.npz", "the data itself"),
            (tmp_path / "set.npy", "end its name in .npz"),
        ):
            assert sentence in refusal(DataSource(tmp_path / "set.npz"), out, [FOG], overwrite=True)
        assert "no folder" in refusal(DataSource(folder), tmp_path / "a" / "b", [FOG])

    def test_a_broken_picture_is_named(self, tmp_path: Path, folder: Path) -> None:
        whole = (folder / "blue" / "1.png").read_bytes()
        (folder / "blue" / "1.png").write_bytes(whole[: len(whole) // 2])
        assert str(folder / "blue" / "1.png") in refusal(DataSource(folder), tmp_path / "out", [FOG])
        assert not (tmp_path / "out").exists()


class TestCommand:
    def test_one_corruption_is_written(self, tmp_path: Path, folder: Path) -> None:
        result = emu("corrupt", folder, "-o", tmp_path / "out", "--corruption", "fog", "--severity", 3, "--seed", 2)
        assert result.exit_code == 0 and f"Wrote {tmp_path / 'out'} (fog:3:2)." in result.stdout
        picture = np.asarray(pillow.open(tmp_path / "out" / "green" / "0.png"))
        assert np.array_equal(picture, corrupt(pictures(), "fog", 3, seed=2)[1])

    def test_all_writes_every_corruption_and_severity(self, tmp_path: Path, folder: Path) -> None:
        result = emu("corrupt", folder, "-o", tmp_path / "all", "--all", "--samples", 1)
        assert result.exit_code == 0, result.output
        assert {(path.parts[-4], path.parts[-3]) for path in (tmp_path / "all").rglob("*.png")} == {
            (name, str(severity)) for name in CORRUPTIONS for severity in range(1, 6)
        }
        assert (
            emu("corrupt", folder, "-o", tmp_path / "fog", "--all", "--corruption", "fog", "--samples", 1).exit_code
            == 0
        )
        assert sorted(path.name for path in (tmp_path / "fog" / "fog").iterdir()) == ["1", "2", "3", "4", "5"]

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--corruption", "fog"], "--corruption and --severity, or --all"),
            (["--corruption", "frost", "--severity", "1"], "'frost' is no corruption"),
            (["--corruption", "fog", "--severity", "x"], "--severity 'x'"),
            (["--corruption", "fog", "--severity", "6"], "severity is 6"),
            (["--corruption", "fog", "--severity", "1", "--samples", "9"], "ask for 1 to 6"),
            (["--corruption", "fog", "--severity", "1", "--label-column", "kind"], "no column 'kind'"),
            (["--corruption", "fog", "--severity", "1", "--mean", "0.5"], "'mean' is for arrays"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_sentence(
        self, tmp_path: Path, folder: Path, options: list[str], sentence: str
    ) -> None:
        result = emu("corrupt", folder, "-o", tmp_path / "out", *options)
        assert result.exit_code == 2 and sentence in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()
