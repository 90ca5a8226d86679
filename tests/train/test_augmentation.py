"""Augmentation: what each kind of change does, and that a generator decides all of it."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("PIL", reason="needs the extra 'data'")

from emu.errors import InputError
from emu.train.augmentation import _OPERATIONS, Augmentation
from emu.train.presets import PRESETS

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
EVERYTHING = Augmentation(mixup=0.3, erasing=0.5, randaugment=(2, 9), flip=True, crop_padding=2, mean=MEAN, std=STD)
EVERYTHING_BUT_PICTURES = Augmentation(mixup=0.3, erasing=0.5, flip=True, crop_padding=1)


def generator(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def pictures(samples: int = 64, channels: int = 3, size: int = 12) -> Any:
    return torch.randint(0, 256, (samples, channels, size, size), generator=generator(9), dtype=torch.uint8)


def normalized(images: Any) -> Any:
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return (images.float() / 255 - mean) / std


LABELS = torch.arange(64) % 7


class TestDeterminism:
    def test_the_same_generator_gives_the_same_batch(self) -> None:
        pixels = normalized(pictures())
        first, second = (EVERYTHING.batch(pixels, LABELS, 7, generator()) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])

    def test_another_batch_is_changed_otherwise_whatever_the_global_generator(self) -> None:
        pixels, one = normalized(pictures()), generator()
        torch.manual_seed(0)
        first = EVERYTHING.batch(pixels, LABELS, 7, one)[0]
        torch.manual_seed(0)
        assert not torch.equal(EVERYTHING.batch(pixels, LABELS, 7, one)[0], first)

    def test_switching_one_change_off_leaves_the_draws_of_the_others(self) -> None:
        pixels = normalized(pictures())
        flipped = Augmentation(flip=True).batch(pixels, LABELS, 7, generator())[0]
        both, _ = Augmentation(flip=True, erasing=0.5).batch(pixels, LABELS, 7, generator())
        untouched = (both == flipped).all(dim=(1, 2, 3))
        assert 0 < untouched.sum() < len(pixels)
        assert (both == flipped).float().mean() > 0.7

    def test_the_arguments_stay_as_they_are(self) -> None:
        pixels, labels = normalized(pictures()), LABELS.clone()
        EVERYTHING.batch(pixels, labels, 7, generator())
        assert torch.equal(pixels, normalized(pictures())) and torch.equal(labels, LABELS)

    def test_nothing_is_changed_by_default(self) -> None:
        pixels = normalized(pictures())
        same, soft = Augmentation().batch(pixels, LABELS, 7, generator())
        assert torch.equal(same, pixels) and torch.equal(soft, torch.nn.functional.one_hot(LABELS, 7).float())


class TestMixup:
    def test_images_and_labels_are_mixed_with_one_share(self) -> None:
        # Image i is the number i everywhere, and its own class: so a mixture tells its parts.
        pixels = torch.arange(8.0)[:, None, None, None].expand(8, 1, 2, 2)
        mixed, soft = Augmentation(mixup=1.0).batch(pixels, torch.arange(8), 8, generator(1))
        torch.testing.assert_close(mixed[:, 0, 0, 0], soft @ torch.arange(8.0))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(8))
        shares = {round(float(each), 5) for each in soft[soft > 0] if each < 1}
        assert len(shares) == 2 and sum(shares) == pytest.approx(1)

    def test_shares_follow_a_beta_distribution(self) -> None:
        one = generator()
        pixels, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
        shares = []
        for _ in range(2000):
            soft = Augmentation(mixup=0.3).batch(pixels, labels, 2, one)[1]
            if soft[0, 0] < 1:  # not mixed with itself
                shares.append(float(soft[0, 0]))
        # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
        assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
        assert np.var(shares) == pytest.approx(1 / (4 * 1.6), rel=0.1)

    def test_two_kinds_of_label_are_mixed_together(self) -> None:
        one_hot = torch.nn.functional.one_hot
        kinds = torch.arange(64) % 3
        both = torch.cat([one_hot(LABELS, 7), one_hot(kinds, 3)], dim=1).float()
        pixels = torch.zeros(64, 1, 2, 2)
        _, mixed = EVERYTHING_BUT_PICTURES.batch(pixels, both, 10, generator())
        assert torch.equal(mixed[:, :7], EVERYTHING_BUT_PICTURES.batch(pixels, LABELS, 7, generator())[1])
        assert torch.equal(mixed[:, 7:], EVERYTHING_BUT_PICTURES.batch(pixels, kinds, 3, generator())[1])


class TestErasing:
    def test_a_rectangle_of_some_images_becomes_noise(self) -> None:
        pixels = torch.full((2000, 1, 32, 32), 99.0)
        erased = Augmentation(erasing=0.25).batch(pixels, torch.zeros(2000, dtype=torch.int64), 1, generator())[0]
        changed = erased != 99
        hit = changed.any(dim=(1, 2, 3))
        assert hit.float().mean() == pytest.approx(0.25, abs=0.03)
        areas = changed[hit].float().mean(dim=(1, 2, 3))
        assert areas.min() > 0.015 and areas.max() < 0.36
        for image in changed[hit][:50, 0]:
            rows, columns = image.any(dim=1).sum(), image.any(dim=0).sum()
            assert image.sum() == rows * columns, "it is a rectangle"
            assert 0.25 < rows / columns < 4
        noise = erased[changed]
        assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)


class TestFlipAndCrop:
    def test_half_of_the_images_are_mirrored(self) -> None:
        pixels = pictures(1000, 1, 4)
        flipped = Augmentation(flip=True).batch(pixels, torch.zeros(1000, dtype=torch.int64), 1, generator())[0]
        mirrored = (flipped == pixels.flip(-1)).all(dim=(1, 2, 3))
        assert ((flipped == pixels).all(dim=(1, 2, 3)) | mirrored).all()
        assert mirrored.float().mean() == pytest.approx(0.5, abs=0.05)

    def test_images_move_by_up_to_the_padding_and_repeat_their_edge(self) -> None:
        image = torch.arange(25.0).reshape(1, 1, 5, 5)
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")[0]
        windows = {tuple(padded[0, y : y + 5, x : x + 5].flatten().tolist()) for y in range(5) for x in range(5)}
        moved = Augmentation(crop_padding=2).batch(
            image.expand(500, 1, 5, 5), torch.zeros(500, dtype=torch.int64), 1, generator()
        )[0]
        assert {tuple(each.flatten().tolist()) for each in moved} == windows


class TestRandAugment:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_pictures_and_their_normalized_pixels_become_the_same(self, channels: int) -> None:
        images = pictures(channels=channels)
        mean, std = MEAN[:channels], STD[:channels]
        shaped = [torch.tensor(each)[:, None, None] for each in (mean, std)]
        plain = Augmentation(randaugment=(2, 9)).batch(images, LABELS, 7, generator())[0]
        augmentation = Augmentation(randaugment=(2, 9), mean=mean, std=std)
        scaled = augmentation.batch((images.float() / 255 - shaped[0]) / shaped[1], LABELS, 7, generator())[0]
        assert plain.dtype == torch.uint8 and scaled.dtype == torch.float32
        torch.testing.assert_close((scaled * shaped[1] + shaped[0]) * 255, plain.float(), atol=1e-3, rtol=0)
        assert (plain != images).flatten(1).any(dim=1).float().mean() > 0.8

    def test_magnitude_0_only_stretches_contrast(self) -> None:
        # Pictures that hold 0 and 255 in equal shares are kept by every operation without a magnitude.
        images = (torch.rand(64, 1, 8, 8, generator=generator()) < 0.5).to(torch.uint8) * 255
        same = Augmentation(randaugment=(3, 0)).batch(images, LABELS, 7, generator())[0]
        assert torch.equal(same, images)

    def test_a_larger_magnitude_changes_more(self) -> None:
        images = pictures(256, 3, 16).float()
        smooth = torch.nn.functional.avg_pool2d(images, 7, 1, 3).to(torch.uint8)
        labels = torch.zeros(256, dtype=torch.int64)
        changes = [
            (Augmentation(randaugment=(1, m)).batch(smooth, labels, 1, generator())[0].float() - smooth).abs().mean()
            for m in (1, 10, 30)
        ]
        assert changes[0] < changes[1] < changes[2]

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_every_operation_keeps_size_and_mode_in_both_directions(self, mode: str) -> None:
        image = pytest.importorskip("PIL.Image")
        picture = image.fromarray(pictures(1, 3)[0].movedim(0, -1).numpy()).convert(mode)
        assert len(_OPERATIONS) == 14
        for operation in _OPERATIONS:
            for share in (0.0, 0.5, 1.0):
                for sign in (1, -1):
                    changed = operation(picture, share, sign)
                    assert (changed.size, changed.mode) == (picture.size, mode)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mixup": -1}, "mixup is -1"),
        ({"erasing": 1.5}, "erasing is 1.5"),
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"randaugment": (0, 9)}, "0 operations of magnitude 9"),
        ({"randaugment": (2, 31)}, "magnitude from 0 to 30"),
        ({"mean": (0.5,)}, "mean and std belong together"),
        ({"mean": (0.5,), "std": (0.0,)}, "numbers above 0"),
    ],
)
def test_settings_out_of_range_are_said(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Augmentation(**settings)


@pytest.mark.parametrize(
    ("augmentation", "pixels", "labels", "sentence"),
    [
        (Augmentation(randaugment=(2, 9)), torch.zeros(2, 3, 4, 4), LABELS[:2], "give mean and std of the model's"),
        (
            Augmentation(randaugment=(2, 9), mean=(0.5,), std=(0.5,)),
            torch.full((2, 3, 4, 4), 9.0),
            LABELS[:2],
            "this mean and std make the pixels 1275 to 1275",
        ),
        (
            Augmentation(randaugment=(2, 9), mean=(0.5, 0.5), std=(1.0, 1.0)),
            torch.zeros(2, 3, 4, 4),
            LABELS[:2],
            "mean has 2 numbers and the images 3 channels",
        ),
        (Augmentation(randaugment=(2, 9)), pictures(2, 4, 4), LABELS[:2], "1 or 3 channels, not 4"),
        (Augmentation(erasing=0.5), pictures(2, 3, 4), LABELS[:2], "these are uint8: give float"),
        (Augmentation(), torch.zeros(2, 4, 4), LABELS[:2], r"shape \[2, 4, 4\]"),
        (Augmentation(), torch.zeros(2, 3, 4, 4), LABELS[:3], r"Labels have shape \[3\] for 2 images"),
        (Augmentation(), torch.zeros(2, 3, 4, 4), torch.tensor([0, 9]), "Labels are 0 to 9 but there are 7 classes"),
        (Augmentation(), torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), r"Soft labels have shape \[2, 3\]: give \[2, 7\]"),
    ],
)
def test_batches_that_do_not_fit_are_said(augmentation: Augmentation, pixels: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        augmentation.batch(pixels, labels, 7, generator())


class TestPresets:
    def test_the_learning_rate_grows_with_the_batch(self) -> None:
        preset = PRESETS["corrupted_image_distillation"]
        assert preset.learning_rate() == 1e-3 and preset.learning_rate(64) == 6.25e-5

    def test_what_is_read_into_a_study_names_fields(self) -> None:
        for preset in PRESETS.values():
            assert all(hasattr(preset, name) for name in preset.read_as)

    def test_its_augmentation_is_one(self) -> None:
        preset = PRESETS["corrupted_image_distillation"]
        assert Augmentation(mixup=preset.mixup, erasing=preset.erasing).mixup == 0.3
