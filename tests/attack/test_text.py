"""Text: which tokens were read, soft assignments, and the score of tokens."""

from __future__ import annotations

import pytest
import torch

from simudy import SGD, AdamW, Evidence, Lion, Recipe, StatelessModel, simulate
from simudy.analysis.text.text_score import score_tokens
from simudy.attack.coordinates import coordinates_named
from simudy.attack.first_layer.tokens import tokens_read
from simudy.dynamics.optim import Muon
from simudy.errors import SimudyError
from simudy.victim.data.sentences import ALPHABET, Sentences, one_hot
from simudy.victim.models import MLP, Writer

LINES = ["wet dog", "my song", "old jar"]


def evidence(rule=None, **facts) -> Evidence:
    torch.manual_seed(0)
    net = Writer((1, 7, 27), width=8).double()
    model, texts = StatelessModel(net), one_hot(LINES).double()
    recipe = Recipe(rule or SGD(lr=0.1), epochs=3)
    labels = torch.zeros(3, dtype=torch.int64)
    end = simulate(model.loss, model.params, recipe.collate(texts, labels), recipe.rules(3))
    return Evidence(model, model.params, end, recipe, (1, 7, 27), 2, n=3, **facts)


def letters(read: torch.Tensor) -> set[str]:
    return {ALPHABET[i] for i in read.nonzero().flatten().tolist()}


@pytest.mark.parametrize(
    "rule",
    [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9, weight_decay=0.1), AdamW(lr=0.01), Lion(lr=1e-3)],
    ids=lambda rule: type(rule).__name__,
)
def test_the_embedding_tells_which_tokens_were_read_and_no_others(rule):
    """Also where weight decay moves the rows of the others."""
    assert letters(tokens_read(evidence(rule))) == set("".join(line[:-1] for line in LINES))


def test_where_it_cannot_tell_every_token_counts():
    assert tokens_read(evidence(precision="bfloat16")).all()
    assert tokens_read(evidence(Muon(lr=0.01, others=AdamW()))).all()


def test_tokens_need_an_embedding():
    model = StatelessModel(MLP((1, 7, 27), 2, width=4))
    moved = {name: p + 1 for name, p in model.params.items()}
    other = Evidence(model, model.params, moved, Recipe(SGD()), (1, 7, 27), 2, n=3)
    with pytest.raises(SimudyError, match="name the model's so"):
        coordinates_named("tokens", other)


def test_a_latent_stands_for_shares_of_tokens_that_were_read():
    tokens = coordinates_named("tokens", evidence())
    latent = torch.randn(2, 1, 7, 27, dtype=torch.float64)
    shares = tokens.decode(latent)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 1, 7, dtype=torch.float64))
    unread = [ALPHABET.index(c) for c in "qzk"]
    assert (shares[:, :, :-1, unread] == 0).all() and (shares[:, :, -1, unread] > 0).all()
    torch.testing.assert_close(tokens.decode(tokens.encode(shares)), shares, atol=1e-4, rtol=0)


def test_the_loss_is_that_of_a_language_model():
    """Cross-entropy of class 0 beside the next tokens' mean −log p, written out."""
    torch.manual_seed(0)
    net, texts = Writer((1, 7, 27), width=8).double().eval(), one_hot(LINES).double()
    seen = net.blocks(texts[:, 0] @ net.embedding + net.position, mask=net.mask)
    loss = torch.nn.functional.cross_entropy(
        net.head(seen)[:, :-1].flatten(0, 1), texts[:, 0, 1:].argmax(2).flatten()
    )
    model = StatelessModel(net)
    found = model.loss(model.params, (texts, torch.zeros(3, dtype=torch.int64)))
    torch.testing.assert_close(found, loss)


def test_the_writer_does_not_look_ahead():
    torch.manual_seed(0)
    net = Writer((1, 7, 27), width=8).eval()
    first, other = one_hot(["wet dog"])[:, 0], one_hot(["wet fox"])[:, 0]
    ends = [net.blocks(x @ net.embedding + net.position, mask=net.mask) for x in (first, other)]
    torch.testing.assert_close(ends[0][:, :4], ends[1][:, :4])
    assert not torch.allclose(ends[0][:, 4], ends[1][:, 4])


def test_the_writer_refuses_pictures():
    with pytest.raises(SimudyError, match="as Sentences makes them"):
        Writer((3, 8, 8), 10)
    with pytest.raises(SimudyError, match="set Writer"):
        Writer(width=9, heads=2)


def test_the_score_counts_tokens_beside_its_floors():
    truth, heldout = one_hot(["wet dog", "my song"]), one_hot(["wee dad"])
    found = one_hot(["my soup", "wet fog"]) * 0.6 + 0.01
    judged = score_tokens(found, truth, heldout, ALPHABET)
    assert judged["read"] == ["wet fog", "my soup"]
    assert judged["true"] == ["wet dog", "my song"] and judged["candidates"] == [1, 0]
    assert judged["each"] == pytest.approx([6 / 7, 5 / 7])
    assert judged["right"] == pytest.approx((6 + 5) / 14)
    # "wee dad" twice: w, e, space, d beside "wet dog", none beside "my song"; d occurs once
    assert judged["floor"]["heldout"] == pytest.approx(4 / 14)
    assert judged["floor"]["most_frequent"] == pytest.approx(1 / 14)
    alone = score_tokens(found[:1], truth, heldout, ALPHABET)
    assert alone["read"] == ["", "my soup"] and alone["candidates"] == [-1, 0]
    assert alone["right"] == pytest.approx(5 / 14) and alone["each"][0] == 0


def test_sentences_are_drawn_from_the_seed():
    splits = Sentences(n=3, pretrain=5).load(seed=4)
    again = Sentences(n=3, pretrain=5).load(seed=4)
    assert splits.pretrain is not None and len(splits.pretrain) == 5
    assert torch.equal(splits.victim.images, again.victim.images)
    assert splits.victim.shape == (1, 16, 27) and splits.alphabet == ALPHABET
    assert (splits.victim.images.sum(3) == 1).all()
    assert not torch.equal(splits.victim.images, splits.heldout.images)
