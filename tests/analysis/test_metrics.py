"""SSIM must be scikit-image's, or no figure compares with a published one."""

import math

import pytest
import torch
from skimage.data import lfw_subset
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from simudy.analysis.metrics import contrast, mse, pairwise_ssim, psnr, ssim
from simudy.analysis.pairing import UNMATCHED, greedy, hungarian, matched
from simudy.errors import SimudyError


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(a: torch.Tensor, b: torch.Tensor, data_range: float) -> float:
    value = structural_similarity(a.numpy(), b.numpy(), data_range=data_range, channel_axis=0)
    return float(value)  # pyright: ignore[reportArgumentType]  # a pair only if asked for


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (4, 1, 25, 25), (3, 2, 7, 9), (2, 3, 64, 64)])
def test_ssim_is_scikit_images(shape):
    a = random_images(*shape)
    b = a + 0.5 * random_images(*shape, seed=1)
    expected = [reference(x, y, float(r)) for x, y, r in zip(a, b, contrast(a), strict=True)]
    assert ssim(a, b, data_range=contrast(a)).tolist() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_faces_is_scikit_images():
    faces = torch.as_tensor(lfw_subset()[:20])[:, None]
    expected = [reference(x, y, 1.0) for x, y in zip(faces[:10], faces[10:], strict=True)]
    assert ssim(faces[:10], faces[10:], data_range=1).tolist() == pytest.approx(expected, abs=1e-6)


def test_single_precision_loses_nothing_to_cancellation():
    a = (random_images(2, 3, 16, 16) + 100).float()
    b = (a + 0.1 * random_images(2, 3, 16, 16, seed=1)).float()
    expected = [reference(x.double(), y.double(), 5.0) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b, data_range=5).tolist() == pytest.approx(expected, abs=1e-6)


def test_pairwise_equals_one_call_per_pair():
    truth, candidates = random_images(3, 3, 12, 12), random_images(5, 3, 12, 12, seed=1)
    ranges = contrast(truth)
    matrix = pairwise_ssim(truth, candidates, data_range=ranges)
    assert matrix.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            one = ssim(truth[i : i + 1], candidates[j : j + 1], data_range=ranges[i])
            assert matrix[i, j].item() == pytest.approx(one.item(), abs=1e-12)


def test_ssim_broadcasts_one_image_against_many():
    one, many = random_images(1, 1, 8, 8), random_images(4, 1, 8, 8, seed=1)
    assert ssim(one, many, data_range=2).shape == (4,)
    assert torch.equal(ssim(one, many, data_range=2), pairwise_ssim(one, many, data_range=2)[0])


def test_psnr_is_scikit_images_per_image():
    a, b = random_images(3, 3, 8, 8).sigmoid(), random_images(3, 3, 8, 8, seed=1).sigmoid()
    expected = [
        peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1)
        for x, y in zip(a, b, strict=True)
    ]
    assert psnr(a, b).tolist() == pytest.approx(expected)
    assert psnr(a, a)[0] == math.inf
    assert mse(a, a + 0.5).tolist() == pytest.approx([0.25] * 3)


def test_images_below_the_window_name_the_remedy():
    small = torch.zeros(2, 3, 6, 32)
    with pytest.raises(SimudyError, match=r"at least 7×7.*enlarge"):
        ssim(small, small, data_range=1)


def test_a_flat_image_scores_a_number():
    flat, other = torch.full((1, 1, 8, 8), 0.3), random_images(1, 1, 8, 8)
    assert ssim(flat, flat, data_range=contrast(flat)).item() == pytest.approx(1)
    assert abs(ssim(flat, other, data_range=contrast(flat)).item()) < 0.1


def test_greedy_and_hungarian_differ_where_greed_costs():
    matrix = torch.tensor([[0.9, 0.8], [0.8, 0.1]])
    assert greedy(matrix).tolist() == [0, 1]  # 0.9 first leaves 0.1
    assert hungarian(matrix).tolist() == [1, 0]  # 0.8 twice


@pytest.mark.parametrize("pair", [greedy, hungarian])
def test_pairing_of_unequal_numbers(pair):
    wide = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.7, 0.2]])
    assert pair(wide).tolist() == [2, 1]
    tall = torch.tensor([[0.1], [0.5], [0.3]])
    assert pair(tall).tolist() == [UNMATCHED, 0, UNMATCHED]
    assert matched(tall, pair(tall), otherwise=0).tolist() == [0, 0.5, 0]
