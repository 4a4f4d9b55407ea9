"""Text: sentences out of a two-layer transformer that went on training on them."""

import torch
from torch import nn

from simudy import SGD, StatelessModel, cosine, simulate

ALPHABET = "abcdefghiklmnoprstuvwy "
SECRET = ["red cats", "old ship", "my bread", "why hide"]
OTHERS = ["big dogs", "his soap", "we drank", "two owls"]  # what a guess would be worth


def one_hot(sentences):
    rows = [[letter == known for known in ALPHABET] for line in sentences for letter in line]
    return torch.tensor(rows).float().unflatten(0, (-1, 8))  # (sentences, tokens, letters)


class Writer(nn.Module):
    """Guesses each letter from those before it; the loss of each sentence, soft ones too."""

    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(len(ALPHABET), width))
        self.position = nn.Parameter(2 * torch.randn(8, width))
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(ALPHABET))
        self.mask = torch.full((8, 8), -1e9).triu(1)

    def forward(self, letters):
        odds = self.head(self.blocks(letters @ self.embedding + self.position, self.mask))
        return -(odds.log_softmax(2)[:, :-1] * letters[:, 1:]).sum(2).mean(1)


torch.manual_seed(0)
model = StatelessModel(Writer(), criterion=lambda losses, labels: losses)


def displacement(letters):
    end = simulate(model.loss, model.params, [(letters, torch.zeros(4))] * 2, SGD(lr=0.05))
    return {name: end[name] - model.params[name] for name in end}


truth = one_hot(SECRET)
moved = displacement(truth)
read = (moved["embedding"] != 0).any(1)  # a letter that was not read has no gradient at all
assert torch.equal(read, truth[:, :-1].any(1).any(0))  # the last letters are only guessed
latent = (0.1 * torch.randn(4, 8, len(ALPHABET))).requires_grad_()  # odds of each letter
allowed = torch.stack([torch.where(read, 0.0, -1e9)] * 7 + [torch.zeros(len(ALPHABET))])
outer = torch.optim.Adam([latent], lr=0.1)
for _ in range(200):
    sentences = (latent + allowed).softmax(2)
    latent.grad = torch.autograd.grad(cosine(displacement(sentences), moved), latent)[0]
    outer.step()
found, true, others = (t.argmax(2) for t in (sentences, truth, one_hot(OTHERS)))
alike = [(true[:, None] == t).float().mean(2).max(1).values.mean() for t in (found, others)]
print(["".join(ALPHABET[i] for i in line) for line in found.tolist()])
print(f"letters right: {alike[0]:.0%}, of other sentences: {alike[1]:.0%}")
assert alike[0] > 2 * alike[1]
