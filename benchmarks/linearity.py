"""M_lin against width, beside the paper's figures (Tian et al., ICLR 2025): n=100, lr 0.01, one
batch of all images.

MLPs start from random weights; the ResNet is pretrained on other images and gets a new head, as in
the paper.

python benchmarks/linearity.py --root DATA [--widths 200 500] [--resnet-width 16] [--resnet-size 16]
[--device cpu]
"""

from __future__ import annotations

import argparse
import resource

import torch
from torch import nn

from simudy import SGD, Recipe
from simudy.analysis.linearity import run_linearity
from simudy.victim.data import Cifar10
from simudy.victim.models import MLP, ResNet

PAPER = {200: 0.9134, 500: 0.9165, 1000: 0.9306, 2000: 0.9396, 4000: 0.9535}


def pretrain(net: ResNet, *, root: str, size: int, epochs: int) -> ResNet:
    """Adam on the public images; then a fresh last layer."""
    splits = Cifar10(root=root, size=size, heldout=0).load(seed=0)
    assert splits.pretrain is not None
    images, labels = splits.normalisation.normalise(splits.pretrain.images), splits.pretrain.labels
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    net.head.reset_parameters()
    return net


def row(
    name: str,
    module: nn.Module,
    *,
    root: str,
    size: int,
    epochs: int,
    n: int,
    paper: object,
    device: str,
) -> None:
    splits = Cifar10(root=root, n=n, size=size, heldout=0).load(seed=0)
    images, labels = (
        splits.normalisation.normalise(splits.victim.images).to(device),
        splits.victim.labels.to(device),
    )
    recipe = Recipe(optimizer=SGD(lr=0.01), epochs=epochs)
    found = run_linearity(module.eval().to(device), images, labels, recipe)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = (torch.cuda.max_memory_allocated() if device == "cuda" else resident) / 2**30
    took = f"{found['seconds']:.1f} s | {peak:.1f} GiB"
    figures = f"{found['m_lin']:.4f} | {paper} | {found['parameters']:,} | {took}"
    print(f"| {name} | {figures} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--widths", type=int, nargs="*", default=list(PAPER))
    parser.add_argument("--resnet-width", type=int, default=16, help="0: no ResNet")
    parser.add_argument(
        "--resnet-size", type=int, default=16, help="height and width of its images"
    )
    parser.add_argument(
        "--pretrain", type=int, default=5, help="epochs on 8,000 other images; 0: random weights"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    common = {"root": args.root, "epochs": args.epochs, "n": args.n, "device": args.device}
    print("| model | M_lin | paper | parameters | time | peak memory |\n|---|---|---|---|---|---|")
    for width in args.widths:
        torch.manual_seed(args.seed)
        row(f"MLP {width}", MLP(width=width), size=32, paper=PAPER.get(width, "–"), **common)
    if args.resnet_width:
        torch.manual_seed(args.seed)
        shape, size = (3, args.resnet_size, args.resnet_size), args.resnet_size
        net, paper = (
            ResNet(shape, width=args.resnet_width),
            0.5988 if args.resnet_width == 64 else "–",
        )
        if args.pretrain:
            net = pretrain(net, root=args.root, size=size, epochs=args.pretrain)
        row(
            f"ResNet-18, width {args.resnet_width}, {size}×{size}",
            net,
            size=size,
            paper=paper,
            **common,
        )


if __name__ == "__main__":
    main()
