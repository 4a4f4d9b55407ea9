"""A prior learned of public images: it learns, its term is RED's, and the command keeps it."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import result
from torch import Tensor

from simudy.attack.prior.denoiser import Denoiser, Red, fit


def ramps(n: int, *, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    """Images that are told from noise at sight: slopes of random directions."""
    generator = torch.Generator().manual_seed(seed)
    down, across = torch.randn(2, n, channels, 1, 1, generator=generator)
    axis = torch.linspace(-1, 1, size)
    return down * axis[:, None] + across * axis


def denoiser(*, channels: int = 1, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(channels, width=8)


def test_it_learns_to_take_out_noise():
    learned, other = denoiser(), ramps(64, seed=1)
    fit(learned, ramps(256), steps=150, seed=0)
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(2))
    noisy = other + 0.5 * noise
    with torch.no_grad():
        found = learned(noisy, torch.full((64,), 0.5))
    assert (found - other).square().mean() < 0.3 * (noisy - other).square().mean()


def test_a_seed_repeats_its_training():
    first, second, other = denoiser(), denoiser(), denoiser()
    for one, seed in ((first, 0), (second, 0), (other, 1)):
        fit(one, ramps(16), steps=3, seed=seed)
    pairs = zip(first.parameters(), second.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 3, 7, 10), (1, 3, 4, 4)])
def test_it_takes_images_of_any_size(shape):
    images = torch.randn(shape)
    with torch.no_grad():
        found = denoiser(channels=shape[1])(images, torch.full((len(images),), 0.3))
    assert found.shape == images.shape


def test_the_term_and_its_slope():
    """½ mean of the squared residual; the slope is the residual over the number of entries."""
    made = []

    def make() -> Denoiser:
        made.append(denoiser())
        return made[-1]

    term, images = Red(make, sigma=0.3), ramps(3, seed=4).requires_grad_()
    assert not made  # until it is needed
    value = term(images)
    residual = images.detach() - made[0](images.detach(), torch.full((3,), 0.3)).detach()
    torch.testing.assert_close(value, 0.5 * residual.square().mean())
    torch.testing.assert_close(torch.autograd.grad(value, images)[0], residual / residual.numel())
    term(images)
    assert len(made) == 1


# --- the command


@pytest.fixture
def run(cli, with_public_images) -> Any:
    said = ("outer.iterations=3", "prior.denoiser=0.5", "prior.denoiser_steps=100")
    return lambda *more: cli(*with_public_images, *said, *more, tiny=False)


def test_it_is_trained_once_and_weighed(run, tmp_path):
    first = run("hydra.run.dir=a")
    assert first.code == 0 and "denoiser: step 100 of 100" in first.out, first.err
    again = run("hydra.run.dir=b")
    assert again.code == 0 and "denoiser from" in again.out
    assert result(tmp_path / "a")["objective"] == result(tmp_path / "b")["objective"]
    without = run("hydra.run.dir=c", "prior.denoiser=0")
    assert without.code == 0 and "denoiser" not in without.out
    assert result(tmp_path / "c")["objective"] != result(tmp_path / "a")["objective"]


def test_a_damaged_one_is_trained_again(run, tmp_path):
    run("hydra.run.dir=a")
    next((tmp_path / "cache/pretrained").iterdir()).write_bytes(b"damaged")
    assert "training it again" in run("hydra.run.dir=b").out
    assert result(tmp_path / "a")["objective"] == result(tmp_path / "b")["objective"]


def test_without_public_images_it_says_so(cli):
    refused = cli("prior.denoiser=0.5").error
    assert "prior.denoiser=0.5 needs public images, and data offers none" in refused
    assert "set prior.denoiser=0" in refused


def test_public_images_of_another_shape_are_refused(run, tmp_path):
    run("hydra.run.dir=a", "task=victim")
    small = np.zeros((40, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", images=small, labels=np.arange(40) % 2)
    refused = run("evidence.folder=a/evidence", "data.path=small.npz").error
    assert "public images like the victim's, of 1×8×8, and those of data are of 1×4×4" in refused
