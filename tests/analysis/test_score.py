"""The score must reward what was read out of the weights and nothing else."""

import json
from dataclasses import dataclass

import pytest
import torch
from skimage.data import lfw_subset
from torch import Tensor

from simudy.analysis.score import paper_ssim, score
from simudy.errors import SimudyError


@dataclass(frozen=True)
class Standard:
    mean: Tensor
    std: Tensor

    def denormalise(self, images: Tensor) -> Tensor:
        return images * self.std + self.mean


PIXELS = torch.as_tensor(lfw_subset()[:100])[:, None].float()  # (100, 1, 25, 25) in [0, 1]
NORMALISATION = Standard(PIXELS.mean(), PIXELS.std())
FACES = (PIXELS - NORMALISATION.mean) / NORMALISATION.std
TRUTH, HELDOUT = FACES[:20], FACES[20:40]


def of(reconstruction: Tensor, truth: Tensor = TRUTH, **options):
    return score(reconstruction, truth, normalisation=NORMALISATION, **options)


def noise_like(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(7))


def test_a_permuted_perfect_reconstruction_is_perfect():
    result = of(TRUTH.flip(0), heldout=HELDOUT)
    assert (result.ssim_paper, result.ssim, result.recovered) == pytest.approx((1, 1, 1))
    assert result.mse == 0
    assert result.psnr == 100  # capped: the mean stays finite
    assert [pair.index for pair in result.pairs] == list(range(19, -1, -1))
    assert [pair.paper_index for pair in result.pairs] == list(range(19, -1, -1))
    assert result.above_floor


def test_surplus_candidates_do_no_harm():
    result = of(torch.cat([noise_like(TRUTH), TRUTH]))
    assert result.ssim_paper == pytest.approx(1)
    assert [pair.index for pair in result.pairs] == list(range(20, 40))


def test_missing_reconstructions_count_as_the_worst():
    result = of(TRUTH[:5])
    assert (result.ssim_paper, result.ssim, result.recovered) == pytest.approx((0.25, 0.25, 0.25))
    assert (result.psnr, result.mse) == pytest.approx((25, 0.75))
    assert [pair.index for pair in result.pairs] == [0, 1, 2, 3, 4] + [-1] * 15


def test_floors_are_those_measured_before_any_code_was_written():
    floor = of(TRUTH, heldout=HELDOUT).floor
    assert floor["heldout"] == pytest.approx(0.20, abs=0.02)
    assert floor["class_mean"] == pytest.approx(0.15, abs=0.03)
    assert floor["noise"] == pytest.approx(0, abs=0.05)


def test_the_floor_may_choose_from_as_many_as_the_attack():
    few = of(TRUTH, heldout=FACES[20:]).floor["heldout"]
    many = of(FACES[:80], heldout=FACES[20:]).floor["heldout"]
    assert many > few + 0.03


def test_generic_images_do_not_pass():
    labels, heldout_labels = torch.arange(20) % 2, torch.arange(60) % 2
    means = torch.stack([FACES[40:][heldout_labels == y].mean(0) for y in (0, 1)])
    known = {"heldout": FACES[40:], "truth_labels": labels, "heldout_labels": heldout_labels}
    for generic in (means[labels], FACES[40:60], noise_like(TRUTH), torch.zeros_like(TRUTH)):
        assert not of(generic, **known).above_floor


def test_class_means_follow_the_labels():
    bright, dark = TRUTH + 3, TRUTH - 3
    heldout = torch.cat([HELDOUT + 3, HELDOUT - 3])
    truth, classes = torch.cat([bright[:3], dark[:3]]), torch.tensor([1, 1, 1, 0, 0, 0])
    heldout_labels = torch.tensor([1] * 20 + [0] * 20)
    labelled = of(
        truth, truth, heldout=heldout, truth_labels=classes, heldout_labels=heldout_labels
    )
    unlabelled = of(truth, truth, heldout=heldout)
    assert labelled.floor["class_mean"] > unlabelled.floor["class_mean"] + 0.1


def test_without_heldout_images_only_noise_is_a_floor():
    floor = of(TRUTH).floor
    assert floor["heldout"] is None and floor["class_mean"] is None and floor["noise"] is not None


def test_the_paper_protocol_does_not_clip_but_the_pixel_one_does():
    truth = TRUTH + 9  # every pixel is above 1: all white once clipped
    result = score(truth + noise_like(truth), truth, normalisation=None)
    assert result.ssim == pytest.approx(1)
    assert result.ssim_paper < 0.9


def test_the_result_is_plain_json_and_deterministic():
    first = of(noise_like(TRUTH), heldout=HELDOUT, seed=3).as_dict()
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert set(first) == {"ssim_paper", "ssim", "psnr", "mse", "recovered", "floor"}
    assert set(first["floor"]) == {"heldout", "noise", "class_mean"}
    assert of(noise_like(TRUTH), heldout=HELDOUT, seed=3).as_dict() == first


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_diverged_reconstruction_scores_finite_figures(value):
    result = of(torch.full_like(TRUTH, value), heldout=HELDOUT)
    assert None not in result.as_dict().values()
    assert not result.above_floor


def test_a_flat_true_image_gives_numbers():
    truth = torch.cat([TRUTH[:2], torch.zeros(1, 1, 25, 25)])
    assert of(truth, truth).ssim_paper == pytest.approx(1)
    assert -1 <= of(noise_like(truth), truth).ssim_paper < 0.1


def test_following_a_run_gives_the_final_figure():
    blurred = TRUTH + 0.5 * noise_like(TRUTH)
    assert paper_ssim(blurred, TRUTH) == of(blurred).ssim_paper


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(SimudyError, match=r"reconstruction must be \(m, 1, 25, 25\)"):
        of(torch.zeros(20, 3, 25, 25))
    with pytest.raises(SimudyError, match="heldout must be"):
        of(TRUTH, heldout=torch.zeros(20, 1, 24, 25))
    with pytest.raises(SimudyError, match="non-empty"):
        of(TRUTH, TRUTH[:0])
