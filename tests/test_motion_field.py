"""Motion between two pictures, and results of the one before carried along."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from penstock.models.motion_field import followed, look, motion, steadied
from penstock.pipeline.pixels import i420_from_rgb

torch.set_num_threads(1)
SIZE = (96, 128)


def scene(seed: int = 0, height: int = 96, width: int = 192) -> NDArray[np.uint8]:
    """Soft texture: something a flow can hold on to."""
    noise = np.random.default_rng(seed).normal(128, 300, (height, width, 3))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)


def view(scene: NDArray[np.uint8], x: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(scene[:, x : x + 128])


def tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def standing(height: int, width: int) -> torch.Tensor:
    """Every pixel where it is: as affine_grid says."""
    return torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)


@pytest.mark.parametrize("pan", [0, 1, 4, 7])
def test_a_result_follows_the_camera(pan: int) -> None:
    before, now = view(scene(), 10), view(scene(), 10 + pan)
    found = motion(look(now, SIZE), look(before, SIZE))
    inner = slice(12, -12)
    off = (followed(tensor(before), found) - tensor(now))[:, inner, inner].abs().mean()
    unmoved = (tensor(before) - tensor(now))[:, inner, inner].abs().mean()
    assert float(off) <= 0.15 * float(unmoved) + 1e-6
    assert float(found.trust[..., 12:-12, 12:-12].mean()) > 0.99


def test_the_same_pictures_give_the_same_motion() -> None:
    a, b = (look(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8), (64, 64)) for i in (0, 1))
    first = motion(a, b)
    for _ in range(3):
        again = motion(a, b)
        assert torch.equal(first.places, again.places)
        assert torch.equal(first.trust, again.trust)


def test_noise_does_not_move_a_still_picture() -> None:
    rng = np.random.default_rng(1)
    a, b = (
        np.clip(view(scene(), 10) + rng.normal(0, 5, (96, 128, 3)), 0, 255).astype(np.uint8) for _ in range(2)
    )
    found = motion(look(a, SIZE), look(b, SIZE))
    assert float((found.places - standing(96, 128)).abs().lt(1e-6).float().mean()) > 0.9


def test_what_came_from_nowhere_is_not_trusted_and_another_scene_is_not_mixed_in() -> None:
    before, now = view(scene(), 10), view(scene(), 10)
    now[30:70, 40:90] = 255 - now[30:70, 40:90] // 2
    found = motion(look(now, SIZE), look(before, SIZE))
    assert float(found.trust[..., 36:64, 48:82].max()) < 0.5
    assert float(found.trust[..., :20, :].min()) > 0.9
    mixed = steadied(tensor(now), followed(tensor(before), found), found, 1.0)
    # a pixel inside shows only what is drawn within a pixel of it
    assert float((mixed - tensor(now))[:, 34:66, 44:86].abs().max()) < 0.2


def test_what_is_shown_before_is_held_to_what_is_drawn_around() -> None:
    drawn = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.2
    still = look(view(scene(), 0), (32, 32))
    mixed = steadied(drawn, torch.ones(3, 32, 32), motion(still, still), 1.0)
    highest = torch.nn.functional.max_pool2d(drawn, 3, 1, 1)
    assert torch.allclose(mixed, highest)
    assert torch.equal(steadied(drawn, torch.ones(3, 32, 32), motion(still, still), 0.0), drawn)


@pytest.mark.parametrize("size", [(16, 16), (16, 512), (32, 24)])
def test_black_and_small_pictures_stand_still(size: tuple[int, int]) -> None:
    black = np.zeros((*size, 3), np.uint8)
    found = motion(look(black, size), look(black, size))
    assert torch.allclose(found.places, standing(*size), atol=1e-6)
    image = torch.randn(3, *size)
    assert torch.allclose(followed(image, found), image, atol=1e-5)


def test_a_look_is_the_same_of_rgb_and_i420() -> None:
    rgb = view(scene(), 0)
    a, b = look(rgb, SIZE).astype(float), look(i420_from_rgb(rgb), SIZE).astype(float)
    assert a.shape == b.shape == (48, 64)
    # limited range: 219 levels for 255
    assert np.abs(a - (b - 16) * 255 / 219).mean() < 2
