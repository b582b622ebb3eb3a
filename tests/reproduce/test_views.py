"""Views: one set of parameters, two renderers, no dependence on who draws them."""

import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from reproduce import views
from reproduce.views import Augment, Crop

WHOLE = Crop(24, (1.0, 1.0), (1.0, 1.0))
INDEX = np.arange(12)


def photos(n: int, height: int = 40, width: int = 50, channels: int = 3) -> np.ndarray:
    """Smooth coloured pictures: low-resolution noise, enlarged."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        out.append(np.asarray(image if channels == 3 else image.convert("L")))
    return np.stack(out)


def both(augment: Augment, images: np.ndarray, view: int = 0, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """(batched, per image) renderings of the same parameters, both 0..255 float."""
    index = np.arange(len(images))
    crop = augment.crops[view]
    params = views.sample(augment, seed, 2, index, view, *images.shape[1:3])
    batched = views.render_batch(torch.from_numpy(images), params, crop, augment) * 255
    single = torch.stack(
        [views.crop_image(Image.fromarray(im), params, crop, augment, i) for i, im in enumerate(images)]
    )
    assert single.dtype == torch.uint8
    coloured = views.colour(single, params, augment)
    return batched, coloured.float() if coloured.dtype == torch.uint8 else coloured * 255


@pytest.mark.parametrize("size", [12, 24, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_resize_and_flip_agree_with_pil_whether_shrinking_or_enlarging(size, channels):
    augment = Augment((Crop(size, (0.2, 1.0)),), channels=channels)
    batched, single = both(augment, photos(12, channels=channels))
    assert (batched - single).abs().max() < 1.01  # PIL rounds after each of its two passes


def test_the_full_chain_of_both_renderers_agrees_up_to_rounding():
    augment = Augment(
        (Crop(32, (0.14, 1.0)),),
        jitter={"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "probability": 0.8},
        grayscale=0.2,
        blur={"probability": 0.5, "sigma": [0.1, 2.0]},
        solarize={"probability": 0.0, "threshold": 0.5},
    )
    batched, single = both(augment, photos(40))
    assert (batched - single).abs().mean() < 0.5  # PIL rounds its crop; jitter makes more of it
    assert (batched - single).abs().mean((1, 2, 3)).max() < 1.5


def test_gray_and_blur_change_the_views_that_they_are_drawn_for_and_no_other():
    """Each by itself, by torchvision's own functions."""
    images = photos(6)
    crop = Crop(24, (0.3, 0.6))
    plain = Augment((crop,), flip=0.0)
    before = both(plain, images)[0] / 255
    chosen = np.array([True, False] * 3)
    gray = dataclasses.replace(plain, grayscale=0.5)
    params = dataclasses.replace(views.sample(gray, 3, 2, np.arange(6), 0, 40, 50), gray=chosen)
    found = views.colour(before, params, gray)
    torch.testing.assert_close(found[chosen], TF.rgb_to_grayscale(before[chosen], 3), atol=1e-3, rtol=0)
    assert torch.equal(found[~chosen], before[~chosen]) and not torch.equal(found[chosen], before[chosen])
    blurred = dataclasses.replace(plain, blur={"probability": 0.5, "sigma": [0.1, 2.0]})
    params = dataclasses.replace(views.sample(blurred, 3, 2, np.arange(6), 0, 40, 50), sigma=np.where(chosen, 1.5, 0.0))
    found = views.colour(before, params, blurred)
    assert torch.allclose(found[~chosen], before[~chosen], atol=1e-6)
    assert found[chosen].diff(dim=3).abs().mean() < 0.8 * before[chosen].diff(dim=3).abs().mean()


def test_padding_is_black_and_is_resized_with_the_image():
    """Shown at half of its size, pixels across the border are a mixture of both, as Pillow makes it."""
    images = photos(3, 24, 24, 1)
    augment, crop = views.plain(Augment((WHOLE,), flip=0.0, pad=12, channels=1), 24)
    shown = views.render_batch(torch.from_numpy(images), views.whole([24] * 3, [24] * 3, 12), crop, augment) * 255
    padded = [Image.fromarray(np.pad(image.squeeze(), 12)) for image in images]
    expected = np.stack([np.asarray(p.resize((24, 24), Image.Resampling.BILINEAR)) for p in padded])
    assert np.abs(shown[:, 0].numpy() - expected).max() < 1.01 and expected[:, 5].max() > 0


def test_the_plain_view_of_a_wide_image_is_its_central_square():
    wide = photos(3, height=20, width=60)
    augment, crop = views.plain(Augment((Crop(20, (1.0, 1.0)),), flip=0.0), 20)
    shown = views.render_batch(torch.from_numpy(wide), views.whole([20] * 3, [60] * 3, 0), crop, augment)
    expected = torch.from_numpy(wide[:, :, 20:40]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(shown, expected, atol=2e-3, rtol=0)
    high = views.render_batch(
        torch.from_numpy(wide.swapaxes(1, 2).copy()), views.whole([60] * 3, [20] * 3, 0), crop, augment
    )
    torch.testing.assert_close(high, expected.swapaxes(2, 3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("operation", range(4))
def test_each_colour_operation_is_torchvisions(operation):
    x = torch.rand(5, 3, 9, 9)
    factors = torch.tensor([0.3, 0.8, 1.0, 1.4, 1.7]) if operation < 3 else torch.tensor([-0.4, -0.1, 0.0, 0.2, 0.5])
    theirs = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue][operation]
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(x, factors, strict=True)])
    ours = views._COLOUR[operation](x, factors.view(-1, 1, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(ours, expected, atol=2e-3 if operation == 1 else 2e-4, rtol=0)  # their luma has 4 digits


def test_jitter_applies_the_operations_in_each_images_own_order():
    augment = Augment(
        (WHOLE,),
        flip=0.0,
        jitter={"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "probability": 1.0},
    )
    p = views.sample(augment, 0, 0, INDEX, 0, 24, 24)
    images = torch.from_numpy(photos(12, 24, 24))
    ours = views.render_batch(images, p, WHOLE, augment)
    for i in range(12):
        x = images[i].permute(2, 0, 1)[None] / 255
        for number in p.order[i]:
            x = views._COLOUR[number](x, torch.tensor(p.factors[i, number]).float().view(1, 1, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(ours[i], x[0], atol=1e-5, rtol=0)
    assert len({tuple(o) for o in p.order}) > 5


def test_the_blur_is_torchvisions_gaussian():
    x = torch.rand(4, 3, 20, 20)
    sigma = np.array([0.0, 0.3, 1.0, 2.0])
    ours = views._blur(x, sigma, 2.0)
    assert torch.equal(ours[0], x[0])
    for i in (1, 2, 3):
        padded = torch.nn.functional.pad(x[i][None], [16] * 4, mode="replicate")
        expected = TF.gaussian_blur(padded, [17, 17], [float(sigma[i])] * 2)[0, :, 16:-16, 16:-16]
        torch.testing.assert_close(ours[i], expected, atol=1e-4, rtol=0)


def test_rotation_turns_about_the_centre_of_the_box_in_both_renderers():
    augment = Augment((Crop(24, (0.5, 1.0)),), rotate=25.0, channels=1)
    batched, single = both(augment, photos(20, 40, 40, 1))
    inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))  # the renderers fill the outside differently
    assert (batched - single)[inner].abs().mean() < 1.5


def test_a_quarter_turn_is_exact_and_counter_clockwise():
    augment = Augment((WHOLE,), flip=0.0, rotate=1.0, channels=1)
    images = photos(3, 24, 24, 1)
    p = dataclasses.replace(views.sample(augment, 0, 0, np.arange(3), 0, 24, 24), angle=np.full(3, 90.0))
    ours = views.render_batch(torch.from_numpy(images), p, WHOLE, augment) * 255
    torch.testing.assert_close(
        ours[:, 0], torch.from_numpy(np.rot90(images, axes=(1, 2)).copy()).float(), atol=0.02, rtol=0
    )


def test_padding_shows_as_zeros_and_pad_and_crop_keeps_whole_pixels():
    augment = Augment((Crop(24, (0.5625, 0.5625), (1.0, 1.0)),), flip=0.0, pad=4, channels=1)  # 24 of 32
    images = photos(12, 24, 24, 1)
    p = views.sample(augment, 0, 0, INDEX, 0, 24, 24)
    ours = (views.render_batch(torch.from_numpy(images), p, augment.crops[0], augment) * 255).round().byte()
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4)))
    for i in range(12):
        top, left = int(p.top[i]), int(p.left[i])
        assert np.array_equal(ours[i, 0].numpy(), padded[i, top : top + 24, left : left + 24])
    assert len({(a, b) for a, b in zip(p.top, p.left, strict=True)}) > 6
    batched, single = both(augment, images)
    assert (batched - single).abs().max() < 1.01


def test_solarize_inverts_bright_pixels_in_both_renderers():
    augment = Augment((WHOLE,), flip=0.0, solarize={"probability": 1.0, "threshold": 0.5})
    images = photos(4, 24, 24)
    batched, single = both(augment, images)
    expected = np.where(images >= 128, 255 - images, images).transpose(0, 3, 1, 2).astype(np.float32)
    assert all(np.abs(found.numpy() - expected).max() < 1e-3 for found in (batched, single))


def test_finish_adds_noise_and_normalises():
    augment = Augment((WHOLE,), noise=0.1, channels=1, mean=(0.5,), std=(0.25,))
    x = torch.full((200, 1, 24, 24), 0.5)
    noisy = views.finish(x, augment, 0, 0, np.arange(200), 0)
    assert abs(float(noisy.mean())) < 0.01 and abs(float(noisy.std()) - 0.4) < 0.01
    quiet = views.finish((x * 255).round().byte(), dataclasses.replace(augment, noise=0.0), 0, 0, np.arange(200), 0)
    torch.testing.assert_close(quiet, torch.full_like(x, (128 / 255 - 0.5) / 0.25))


def test_parameters_depend_on_the_image_not_on_its_company():
    augment = Augment(
        (WHOLE,),
        jitter={"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        grayscale=0.2,
        blur={"probability": 0.5, "sigma": [0.1, 2.0]},
        rotate=10.0,
    )
    together = views.sample(augment, 1, 5, np.array([7, 2, 9]), 0, 30, 30)
    alone = views.sample(augment, 1, 5, np.array([2]), 0, 30, 30)
    for field in dataclasses.fields(together):
        assert np.array_equal(getattr(together, field.name)[1], getattr(alone, field.name)[0]), field.name
    other = [views.sample(augment, *c, 30, 30) for c in [(2, 5, np.array([2]), 0), (1, 6, np.array([2]), 0)]]
    assert all(float(o.angle[0]) != float(alone.angle[0]) for o in other)


def test_a_box_that_never_fits_falls_back_to_the_centre_with_an_allowed_ratio():
    p = views.sample(Augment((Crop(10, (0.9, 1.0)),)), 0, 0, np.arange(50), 0, 10, 100)
    assert np.allclose(p.height, 10) and np.allclose(p.width, 40 / 3) and np.allclose(p.left, (100 - 40 / 3) / 2)


def test_gray_images_become_three_planes_and_colour_becomes_one():
    gray, colour = photos(2, 24, 24, 1), photos(2, 24, 24, 3)
    for images, channels in ((gray, 3), (colour, 1)):
        batched, single = both(Augment((WHOLE,), channels=channels), images)
        assert batched.shape == single.shape == (2, channels, 24, 24)
        assert (batched - single).abs().max() < 1.01


def test_from_a_recipe_lists_one_crop_per_view():
    augment = Augment.of(
        {
            "crops": [{"count": 2, "size": 224, "scale": [0.14, 1]}, {"count": 6, "size": 96, "scale": [0.05, 0.14]}],
            "flip": 0.5,
            "grayscale": 0.2,
        },
        {"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3},
    )
    assert [c.size for c in augment.crops] == [224] * 2 + [96] * 6 and augment.crops[7].scale == (0.05, 0.14)
