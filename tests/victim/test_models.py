"""Every model has the stated shape and size, and can be differentiated twice."""

from inspect import signature
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from simudy.errors import SimudyError
from simudy.victim.models import CNN, MLP, ResNet, ViT, activation_named

CONF = Path(__file__).parents[2] / "conf" / "model"
SMALL = {  # models of 8×8 images cheap enough for finite differences
    "mlp": lambda **to: MLP(**to, width=7, activation="softplus"),
    "cnn": lambda **to: CNN(**to, width=4, norm="batch", activation="tanh"),
    "cnn-group": lambda **to: CNN(**to, width=6, depth=2, norm="group", activation="gelu"),
    "resnet18": lambda **to: ResNet(**to, width=4),
    "resnet34": lambda **to: ResNet(**to, depth=34, width=2, norm="none"),
    "resnet50": lambda **to: ResNet(**to, depth=50, width=4, norm="group"),
    "vit": lambda **to: ViT(**to, width=8),
}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16)])
def test_logits_have_the_stated_shape_and_images_do_not_mix(name: str, shape: tuple[int, int, int]):
    torch.manual_seed(0)
    model = SMALL[name](shape=shape, classes=5).double().eval()
    images = torch.randn(3, *shape, dtype=torch.float64)
    logits = model(images)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(model(images[1:2]), logits[1:2])
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", SMALL)
def test_derivative_of_a_gradient_agrees_with_finite_differences(name: str):
    """d/dx of <v, dloss/dθ>: what differentiating through one training step asks of a model."""
    torch.manual_seed(1)
    model = SMALL[name](shape=(3, 8, 8), classes=4).double().eval()
    images, step = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    direction = [torch.randn_like(p) for p in model.parameters()]

    def along(x: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), torch.tensor([0, 3]))
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.stack([(g * v).sum() for g, v in zip(grads, direction, strict=True)]).sum()

    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(along(leaf), leaf)
    numeric = (along(images + 1e-6 * step) - along(images - 1e-6 * step)) / 2e-6
    assert slope.abs().max() > 0
    torch.testing.assert_close((slope * step).sum(), numeric.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning"
)  # torch's own, at the first jvp
@pytest.mark.parametrize("name", SMALL)
def test_forward_over_reverse_agrees_with_reverse_over_reverse(name: str):
    torch.manual_seed(2)
    model = SMALL[name](shape=(3, 8, 8), classes=4).double().eval()
    params = {k: p.detach() for k, p in model.named_parameters()}
    images, tangents = (
        torch.randn(2, 3, 8, 8, dtype=torch.float64),
        {k: torch.randn_like(p) for k, p in params.items()},
    )

    def gradient(params: dict[str, Tensor], x: Tensor) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (x,)), torch.tensor([0, 3]))

        return torch.func.grad(loss)(x)

    forward = torch.func.jvp(lambda p: gradient(p, images), (params,), (tangents,))[1]
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    leaf = images.clone().requires_grad_()
    loss = F.cross_entropy(functional_call(model, leaves, (leaf,)), torch.tensor([0, 3]))
    grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    inner = torch.stack(
        [(g * v).sum() for g, v in zip(grads, tangents.values(), strict=True)]
    ).sum()
    torch.testing.assert_close(forward, torch.autograd.grad(inner, leaf)[0], rtol=1e-8, atol=1e-10)


def test_resnet_sizes():
    """The well-known counts of the CIFAR networks."""
    with torch.device("meta"):
        assert size(ResNet()) == 11_173_962
        assert size(ResNet(depth=34)) == 21_282_122
        assert size(ResNet(depth=50)) == 23_520_842
        assert size(ResNet(norm="group")) == 11_173_962
        assert size(ResNet(width=16)) < 0.07 * 11_173_962
        for model in (ResNet(), ResNet(depth=34)):
            assert model.stages(model.stem(torch.empty(2, 3, 32, 32))).shape == (2, 512, 4, 4)


def test_mlp_is_the_papers():
    model = MLP()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(1000, 3072), (1000, 1000), (10, 1000)]
    assert [m.bias is not None for m in linear] == [True, False, False]
    assert size(MLP(bias="all")) == size(MLP(bias="none")) + 2010
    images = torch.randn(2, 3, 32, 32)
    seen = []
    linear[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    assert torch.equal(seen[0], images.flatten(1))


def test_vit_reads_positions():
    model = ViT(shape=(1, 8, 12), width=8)
    assert isinstance(model.position, nn.Parameter) and model.position.shape == (1, 6, 8)
    images = torch.randn(1, 1, 8, 12)
    before = model(images)
    with torch.no_grad():
        model.position[:, 0] += torch.randn(8)
    assert not torch.allclose(before, model(images))


@pytest.mark.parametrize(
    ("build", "remedy"),
    [
        (lambda: ResNet(depth=20), "18, 34, 50"),
        (lambda: ResNet(norm="layer"), "batch, group"),
        (lambda: CNN(activation="rleu"), "relu"),
        (lambda: MLP(bias="last"), "first, all, none"),
        (lambda: ViT(shape=(1, 25, 25)), r"ViT\(patch="),
        (lambda: ViT(heads=3), r"ViT\(heads="),
    ],
)
def test_errors_name_the_remedy(build, remedy: str):
    with pytest.raises(SimudyError, match=remedy):
        build()


def test_activations_are_out_of_place():
    x = torch.full((2,), -1.0)
    activation_named("relu")(x)
    assert x.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_matches_the_model(path: Path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    defaults = {
        k: p.default for k, p in signature(get_class(config.pop("_target_"))).parameters.items()
    }
    assert config == defaults | {"shape": None, "classes": None}
