"""Corruptions of pictures do what their names say, by the published constants, and the same to a picture always."""

import io
import subprocess
import sys

import numpy as np
import pytest

from emu.errors import InputError
from emu.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt

pytest.importorskip("scipy", reason="needs the extra 'data'")
pillow = pytest.importorskip("PIL.Image", reason="needs the extra 'data'")

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
# Those whose severities differ in one constant, or in two that both grow.
ORDERED = (*NOISE, "defocus_blur", "motion_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")


def scenes(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Colourful blobs with edges, uint8 `[count, size, size, 3]`."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.Generator(np.random.PCG64(seed)).random((count, size, size, 3))
    smooth = gaussian_filter(noise, (0, size / 12, size / 12, 0), mode="wrap")
    steps = np.round(6 * (smooth - smooth.min()) / np.ptp(smooth)) / 6
    return np.rint(30 + 180 * (0.5 * steps + 0.5 * (smooth - smooth.min()) / np.ptp(smooth))).astype(np.uint8)


def flat(level: int, count: int = 32, size: int = 32) -> np.ndarray:
    return np.full((count, size, size, 3), level, np.uint8)


def point(size: int) -> np.ndarray:
    picture = np.zeros((1, size, size), np.uint8)
    picture[0, size // 2, size // 2] = 255
    return picture


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


class TestSeverity:
    @pytest.mark.parametrize("size", [28, 64, 128])
    @pytest.mark.parametrize("name", ORDERED)
    def test_a_higher_severity_is_further_from_the_clean_picture(self, name: str, size: int) -> None:
        clean = scenes(3 if size == 128 else 12, size)
        distances = [difference(clean, corrupt(clean, name, severity)) for severity in SEVERITIES]
        assert distances[0] > 0
        assert all(np.diff(distances) > 0), distances

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_every_corruption_changes_pictures_at_every_severity(self, name: str) -> None:
        clean = scenes(2, 32)
        for severity in SEVERITIES:
            assert 0.1 < difference(clean, corrupt(clean, name, severity)) < 90

    @pytest.mark.parametrize(("size", "share"), [(45, 0.75), (46, 0.4), (119, 0.4), (120, 0.4)])
    def test_constants_are_those_of_the_set_nearest_in_size(self, size: int, share: float) -> None:
        clean = scenes(1, size)
        mean = clean.mean(axis=(1, 2), keepdims=True)
        assert difference(np.rint((clean - mean) * share + mean), corrupt(clean, "contrast", 1)) < 0.01

    def test_large_pictures_have_more_noise_than_small_ones(self) -> None:
        spread = [corrupt(flat(128, 1, size), "gaussian_noise", 1).std() for size in (45, 46, 119, 120)]
        assert spread == pytest.approx([0.04 * 255, 0.04 * 255, 0.04 * 255, 0.08 * 255], rel=0.05)


class TestRepetition:
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_a_picture_does_not_depend_on_those_beside_it(self, name: str) -> None:
        clean = scenes(5, 32)
        together = corrupt(clean, name, 3, seed=9)
        assert np.array_equal(corrupt(clean[3:], name, 3, seed=9, first=3), together[3:])
        assert np.array_equal(corrupt(clean[1:2], name, 3, seed=9, first=1)[0], together[1])

    @pytest.mark.parametrize(
        "name", ("gaussian_noise", "motion_blur", "fog", "glass_blur", "elastic_transform", "snow")
    )
    def test_seed_index_and_severity_choose_other_random_numbers(self, name: str) -> None:
        clean = scenes(1, 32)
        one = corrupt(clean, name, 4)
        assert not np.array_equal(one, corrupt(clean, name, 4, seed=1))
        assert not np.array_equal(one, corrupt(clean, name, 4, first=1))

    def test_noise_of_two_severities_is_unrelated(self) -> None:
        one, other = (corrupt(flat(128), "gaussian_noise", severity).astype(float) - 128 for severity in (1, 2))
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02

    def test_another_process_draws_the_same_numbers(self) -> None:
        """Literal numbers, which no version of NumPy may change; Python salts its own hashes by process."""
        script = (
            "import numpy as np; from emu.evaluation.corruptions import corrupt; "
            "print(corrupt(np.full((1, 8, 8), 128, np.uint8), 'gaussian_noise', 5, seed=3, first=7)[0, 0].tolist())"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[104, 116, 88, 164, 129, 144, 126, 134]"


class TestNoise:
    @pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (3, 0.08), (5, 0.10)])
    def test_gaussian_noise_has_the_published_moments(self, severity: int, sigma: float) -> None:
        noise = corrupt(flat(128), "gaussian_noise", severity).astype(float) - 128
        count = noise.size
        assert noise.std() == pytest.approx(np.hypot(255 * sigma, 12**-0.5), rel=4 / np.sqrt(2 * count))
        assert abs(noise.mean()) < 4 * 255 * sigma / np.sqrt(count)
        assert np.mean((noise / noise.std()) ** 4) == pytest.approx(3, abs=0.1)

    @pytest.mark.parametrize("level", [40, 160])
    def test_the_variance_of_shot_noise_grows_with_light(self, level: int) -> None:
        photons = 250  # at white, of severity 2
        noisy = corrupt(flat(level), "shot_noise", 2).astype(float)
        assert noisy.mean() == pytest.approx(level, rel=0.01)
        assert noisy.var() == pytest.approx(level * 255 / photons + 1 / 12, rel=0.03)

    def test_shot_noise_leaves_black_black(self) -> None:
        assert not corrupt(flat(0), "shot_noise", 5).any()

    def test_impulses_are_black_or_white_and_leave_the_rest(self) -> None:
        noisy = corrupt(flat(100), "impulse_noise", 5)
        shares = [np.mean(noisy == level) for level in (0, 255, 100)]
        assert shares == pytest.approx([0.035, 0.035, 0.93], rel=0.06)
        assert sum(shares) == 1

    @pytest.mark.parametrize("name", NOISE)
    def test_noise_differs_between_channels(self, name: str) -> None:
        noisy = corrupt(flat(128), name, 5)
        assert not np.array_equal(noisy[..., 0], noisy[..., 1])


class TestBlur:
    @pytest.mark.parametrize("size", [32, 128])
    @pytest.mark.parametrize("name", [each for each in CORRUPTIONS if "blur" in each or each == "elastic_transform"])
    def test_there_is_nothing_to_blur_in_a_flat_picture(self, name: str, size: int) -> None:
        for severity in SEVERITIES:
            assert np.array_equal(corrupt(flat(77, 1, size), name, severity), flat(77, 1, size))

    def test_defocus_turns_a_point_into_a_disk(self) -> None:
        spread = corrupt(point(129), "defocus_blur", 1)[0].astype(float)  # radius 3, next to no smoothing
        rows, columns = np.nonzero(spread)
        assert np.hypot(rows - 64, columns - 64).max() == 3
        assert np.count_nonzero(spread) == 29  # whole points within a radius of 3
        assert np.array_equal(spread, spread.T) and np.array_equal(spread, spread[::-1])

    def test_motion_draws_a_point_into_a_line_to_one_side(self) -> None:
        for index in range(4):
            rows, columns = np.nonzero(corrupt(point(129), "motion_blur", 5, first=index)[0])
            along = 64 - columns  # an angle within 45 degrees: further along the rows than across
            assert along.min() >= 0 and 20 < along.max() <= 40
            assert np.linalg.matrix_rank(np.c_[along, rows - 64].astype(float), tol=4) == 1

    def test_glass_takes_each_pixel_from_nearby(self) -> None:
        clean = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
        clean = np.stack([clean // 256, clean % 256, clean * 0], axis=-1).astype(np.uint8)[None]
        taken = corrupt(clean.repeat(20, 0), "glass_blur", 1).astype(int)  # blurs by 0.05 pixels, which is not at all
        row, column = np.divmod(taken[..., 0] * 256 + taken[..., 1], 32)
        down, right = np.arange(32)[:, None] - row, np.arange(32) - column
        assert set(np.unique(down)) == set(np.unique(right)) == {0, 1}
        assert [np.mean(down), np.mean(right)] == pytest.approx([0.5 * 30**2 / 32**2] * 2, abs=0.02)  # edges stay

    def test_zoom_blurs_the_edge_and_not_the_center(self) -> None:
        stripes = np.uint8(255 * (np.mgrid[:129, :129][1] // 3 % 2))[None]
        change = np.abs(corrupt(stripes, "zoom_blur", 5).astype(float) - stripes)[0]
        assert change[:, 63:66].mean() < 0.5 * change[:, 5:20].mean()


class TestWeather:
    def test_brightness_adds_to_the_largest_channel_and_keeps_the_hue(self) -> None:
        picture = np.zeros((1, 8, 8, 3), np.uint8)
        picture[...] = [120, 60, 30]
        assert corrupt(picture, "brightness", 2)[0, 0, 0].tolist() == [146, 73, 36]  # 120 + 25.5, and as 4 : 2 : 1
        assert corrupt(np.zeros_like(picture), "brightness", 2)[0, 0, 0].tolist() == [26, 26, 26]
        assert corrupt(flat(250, 1), "brightness", 5).min() == 255

    def test_fog_hides_white_least_where_it_is_thickest(self) -> None:
        white = corrupt(flat(255, 8), "fog", 4)  # (1 + 1 x clouds) / (1 + 1), clouds from 0 to 1 on the whole map
        assert white.min() == 128 and white.max() == 255
        assert np.array_equal(white[..., 0], white[..., 2])
        assert not corrupt(flat(0, 1), "fog", 4).any()

    def test_clouds_are_smooth(self) -> None:
        clouds = corrupt(flat(255, 4), "fog", 1).astype(float)
        assert np.abs(np.diff(clouds, axis=1)).mean() < 0.1 * np.ptp(clouds)

    def test_snow_only_adds_light(self) -> None:
        clean = scenes(3, 32)
        snowy = corrupt(clean, "snow", 3)
        assert (snowy >= clean).all() and snowy.mean() > clean.mean() + 5


class TestDigital:
    def test_contrast_shrinks_towards_the_mean(self) -> None:
        clean = scenes(2, 32)
        low = corrupt(clean, "contrast", 4).astype(float)
        assert low.mean(axis=(1, 2)) == pytest.approx(clean.mean(axis=(1, 2)), abs=0.5)
        assert low.std(axis=(1, 2)) == pytest.approx(0.3 * clean.std(axis=(1, 2)), rel=0.03)

    def test_pixels_become_blocks_of_their_mean(self) -> None:
        clean = scenes(1, 128)
        blocks = corrupt(clean, "pixelate", 5)[0].reshape(32, 4, 32, 4, 3).astype(float)  # a quarter of the size
        assert np.ptp(blocks, axis=(1, 3)).max() == 0
        assert blocks[:, 0, :, 0] == pytest.approx(clean[0].reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)), abs=1)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_jpeg_is_that_of_the_published_quality(self, channels: int) -> None:
        clean = scenes(1, 32)[0, ..., :channels]
        file = io.BytesIO()
        pillow.fromarray(clean.squeeze()).save(file, "JPEG", quality=58)
        expected = np.asarray(pillow.open(file)).reshape(clean.shape)
        assert np.array_equal(corrupt(clean[None], "jpeg_compression", 3)[0], expected)

    def test_an_elastic_transform_moves_pixels_and_invents_none(self) -> None:
        clean = scenes(4, 32)
        moved = corrupt(clean, "elastic_transform", 5)
        assert (moved.min(axis=(0, 1, 2)) >= clean.min(axis=(0, 1, 2))).all()
        assert (moved.max(axis=(0, 1, 2)) <= clean.max(axis=(0, 1, 2))).all()
        assert difference(moved, clean) > 3


class TestShapes:
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_gray_pictures_are_pictures_of_one_channel(self, name: str) -> None:
        gray = scenes(2, 28)[..., 0]
        corrupted = corrupt(gray, name, 2)
        assert corrupted.shape == gray.shape and corrupted.dtype == np.uint8
        assert np.array_equal(corrupt(gray[..., None], name, 2)[..., 0], corrupted)

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_pictures_need_not_be_square(self, name: str) -> None:
        for shape in ((1, 8, 8), (1, 40, 33, 3), (1, 13, 64, 1)):
            picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, np.uint8)
            for severity in (1, 5):
                assert corrupt(picture, name, severity).shape == shape

    def test_no_pictures_are_no_pictures(self) -> None:
        assert corrupt(np.zeros((0, 28, 28), np.uint8), "fog", 1).shape == (0, 28, 28)

    def test_the_pictures_given_stay_as_they_are(self) -> None:
        clean = scenes(1, 32)
        for name in CORRUPTIONS:
            before = clean.copy()
            corrupt(clean, name, 5)
            assert np.array_equal(clean, before)


class TestRefusals:
    @pytest.mark.parametrize(
        ("images", "options", "sentence"),
        [
            (flat(1, 1), {"name": "fogg"}, "'fogg' is no corruption: choose one of gaussian_noise"),
            (flat(1, 1), {"severity": 0}, "must be 1, 2, 3, 4 or 5"),
            (flat(1, 1), {"severity": 6}, "severity is 6"),
            (flat(1, 1), {"seed": -1}, "seed of the corruption is -1"),
            (flat(1, 1), {"first": -1}, "index -1"),
            (flat(1, 2), {"first": 2**32 - 1}, r"below 2\^32"),
            (flat(1, 1).astype(np.float32), {}, r"float32 \[1, 32, 32, 3\]"),
            (np.zeros((1, 32, 32, 4), np.uint8), {}, "1 or 3 channels"),
            (np.zeros((32, 32), np.uint8), {}, r"\[32, 32\]"),
            (np.zeros((1, 7, 30), np.uint8), {}, "30 x 7 pixels are too small"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_sentence(self, images: np.ndarray, options: dict, sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            corrupt(images, **{"name": "fog", "severity": 1, **options})

    @pytest.mark.parametrize("text", ["fog", "fog:", "fog:x", "fog:1:2:3", "fog:-1", ":1", "fog:9", "", "fog:1.5"])
    def test_what_cannot_be_read_is_refused(self, text: str) -> None:
        with pytest.raises(InputError, match="corruption|severity"):
            Corruption.parse(text)

    def test_what_is_printed_can_be_read(self) -> None:
        for corruption in (Corruption("fog", 3), Corruption("snow", 5, 7)):
            assert Corruption.parse(str(corruption)) == corruption
        assert str(Corruption("fog", 3)) == "fog:3" and str(Corruption("fog", 3, 7)) == "fog:3:7"
