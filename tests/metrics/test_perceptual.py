"""LPIPS and FVD against plain computations, and what happens without their weights."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from tiny_perceptual import lpips_weights, write_program
from torch.nn import functional

from egom2p.metrics.perceptual import FvdConfig, Lpips, LpipsConfig, VideoFeatures, frechet_distance
from egom2p.storage import save_tensors


def _frames(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 64, 72, 3)).astype(np.uint8)


def _plain_lpips(a_HW3: np.ndarray, b_HW3: np.ndarray, backbone: dict, heads: dict) -> float:
    """One pair, by torchvision's layer list written out, without any of the class under test."""
    total, maps = 0.0, []
    for frame in (a_HW3, b_HW3):
        x = torch.from_numpy(frame).permute(2, 0, 1)[None].double() / 255 * 2 - 1
        mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - mean[:, None, None]) / std[:, None, None]
        kept = []
        for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if index in (3, 6):
                x = functional.max_pool2d(x, 3, 2)
            weight, bias = backbone[f"features.{index}.weight"].double(), backbone[f"features.{index}.bias"].double()
            x = functional.relu(functional.conv2d(x, weight, bias, stride, padding))
            kept.append(x[0])
        maps.append(kept)
    for position, (a_CHW, b_CHW) in enumerate(zip(*maps, strict=True)):
        a_CHW, b_CHW = (x / (x.norm(dim=0) + 1e-10) for x in (a_CHW, b_CHW))
        head_C = heads[f"lin{position}.model.1.weight"].double().flatten()
        total += torch.einsum("chw,c->hw", (a_CHW - b_CHW) ** 2, head_C).mean().item()
    return total


def test_lpips_equals_a_plain_computation(tmp_path):
    backbone, heads = lpips_weights()
    save_tensors(tmp_path / "alexnet.safetensors", backbone)
    torch.save(heads, tmp_path / "alex.pth")
    config = LpipsConfig(backbone=str(tmp_path / "alexnet.safetensors"), heads=str(tmp_path / "alex.pth"))
    lpips, a, b = Lpips.from_files(config), _frames(0), _frames(1)
    wanted = [_plain_lpips(x, y, backbone, heads) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(lpips(a, b), wanted, rtol=1e-4)
    np.testing.assert_array_equal(lpips(a, a), 0.0)


def test_weights_of_another_network_are_named():
    backbone, heads = lpips_weights()
    del backbone["features.6.bias"]
    with pytest.raises(ValueError, match="features.6.bias"):
        Lpips(backbone, heads)


def test_pictures_too_small_for_the_network_are_refused():
    small = np.zeros((1, 30, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 31x31 pixels, found 30x64"):
        Lpips(*lpips_weights())(small, small)
    assert Lpips(*lpips_weights())(small[:, :, :31].repeat(2, axis=1), small[:, :, :31].repeat(2, axis=1)) == 0.0


def test_frechet_distance_equals_the_textbook_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(1.0, 2.0, size=(150, 5))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_with_fewer_videos_than_features():
    a = np.random.default_rng(0).normal(size=(4, 50))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(a, a + 2.0) == pytest.approx(200.0)  # the mean moved by 2 in 50 dimensions
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(a[:1], a)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_network_runs_only_when_allowed_and_known(tmp_path):
    path = tmp_path / "i3d.pt"
    digest = write_program(path)
    with pytest.raises(ValueError, match="allow_torchscript"):
        VideoFeatures(FvdConfig(network=str(path), sha256=digest))
    with pytest.raises(ValueError, match="not the file you trust"):
        VideoFeatures(FvdConfig(network=str(path), sha256="0" * 64, allow_torchscript=True))
    features = VideoFeatures(FvdConfig(network=str(path), sha256=digest, allow_torchscript=True))
    videos = [_frames(0), _frames(1)]
    np.testing.assert_allclose(features(videos), [video.mean((0, 1, 2)) for video in videos], rtol=1e-4)
