"""The attack: evidence, dummies, the span, distances and the outer loop."""

import math
from functools import partial

import pytest
import torch
from conftest import train_victim
from torch import nn

from simudy import (
    SGD,
    Adam,
    Clipped,
    Evidence,
    Factored,
    Mixed,
    Recipe,
    Recompute,
    SimudyError,
    StatelessModel,
    cosine,
    euclidean,
    reconstruct,
)
from simudy.attack.coordinates import Frequencies, SpanCoordinates
from simudy.attack.distance import layerwise
from simudy.attack.dummy import new_dummy
from simudy.attack.evidence import evidence_from_weights
from simudy.attack.first_layer.influence import FirstLayer
from simudy.attack.first_layer.span import Span
from simudy.attack.methods.simudy import Simudy
from simudy.attack.search import Outer, Search
from simudy.dynamics import tree

SHAPE, CLASSES, N = (1, 4, 4), 3, 6
NEWTON = partial(torch.optim.SGD, momentum=0.5)


def mlp(width=40):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, width),
        nn.Tanh(),
        nn.Linear(width, 12),
        nn.Tanh(),
        nn.Linear(12, CLASSES),
    )


def trained(recipe=None, *, make=mlp, dtype=torch.float64, n=N, seed=0):
    """Evidence of a run on random images, and the images and labels themselves."""
    torch.manual_seed(seed)
    module = make().to(dtype)
    recipe = recipe or Recipe(SGD(lr=0.1), epochs=5)
    images, labels = torch.randn(n, *SHAPE, dtype=dtype), torch.arange(n) % CLASSES
    evidence = train_victim(module, recipe, images, labels, classes=CLASSES)
    return evidence, images, labels


RECIPES = {
    "full batch": Recipe(SGD(lr=0.1), epochs=5),
    "mini-batches": Recipe(SGD(lr=0.1), epochs=4, batch_size=2),
    "uneven, shuffled": Recipe(SGD(lr=0.1), epochs=3, batch_size=4, shuffle=True, seed=3),
    "momentum": Recipe(SGD(lr=0.1, momentum=0.9, nesterov=True), epochs=5),
    "weight decay": Recipe(SGD(lr=0.1, weight_decay=5e-2), epochs=5),
    "clipped": Recipe(Clipped(SGD(lr=0.1, weight_decay=1e-2), max_norm=0.2), epochs=5),
    "schedule": Recipe(SGD(lr=0.1), epochs=5, schedule=[1.0, 0.8, 0.6, 0.4, 0.2]),
}


# --- evidence


def test_evidence_survives_a_round_trip(tmp_path):
    evidence, *_ = trained(
        Recipe(Clipped(SGD(lr=0.1, momentum=0.5), max_norm=0.5), epochs=3, batch_size=2)
    )
    evidence.save(tmp_path)
    read = Evidence.load(tmp_path, mlp().double())
    assert (read.recipe, read.shape, read.classes, read.n) == (evidence.recipe, SHAPE, CLASSES, N)
    for name in evidence.initial:
        assert torch.equal(read.initial[name], evidence.initial[name])
        assert torch.equal(read.final[name], evidence.final[name])


def test_evidence_json_may_name_rules_but_not_run_functions(tmp_path):
    evidence, *_ = trained()
    evidence.save(tmp_path)
    path = tmp_path / "evidence.json"
    path.write_text(path.read_text().replace("simudy.dynamics.optim.sgd.SGD", "os.system"))
    with pytest.raises(SimudyError, match=r"os\.system is no rule"):
        Evidence.load(tmp_path, mlp().double())


def broken(weights, *, change):
    weights = dict(weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("1.weight"), "lack '1.weight'"),
        (lambda w: w.update(extra=torch.ones(1)), "hold 'extra'"),
        (lambda w: w.update({"1.weight": torch.ones(2, 2)}), r"shape \(2, 2\)"),
        (
            lambda w: w.update({"1.weight": w["1.weight"] * math.nan}),
            "NaN or infinity in '1.weight'",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    evidence, *_ = trained()
    with pytest.raises(SimudyError, match=message):
        Evidence(
            evidence.model,
            evidence.initial,
            broken(evidence.final, change=change),
            evidence.recipe,
            SHAPE,
            CLASSES,
        )


def test_weights_that_did_not_move_are_refused():
    evidence, *_ = trained()
    with pytest.raises(SimudyError, match="nothing was learned"):
        Evidence(
            evidence.model, evidence.initial, evidence.initial, evidence.recipe, SHAPE, CLASSES
        )


def test_evidence_from_state_dicts_takes_buffers_from_the_first():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    first = {k: v.clone() for k, v in module.state_dict().items()}
    first["1.running_mean"] = torch.tensor([3.0, 4.0])
    last = {k: v + 1 for k, v in first.items()}
    evidence = evidence_from_weights(module, first, last, recipe=Recipe(), shape=SHAPE, classes=3)
    assert evidence.model.buffers["1.running_mean"].tolist() == [3.0, 4.0]
    for moved in evidence.displacement.values():
        torch.testing.assert_close(moved, torch.ones_like(moved))


# --- distances


def test_distances_are_zero_at_agreement_and_as_defined():
    a = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}
    b = {"w": torch.tensor([4.0, -3.0]), "b": torch.tensor([0.0])}
    for distance in (cosine, euclidean, layerwise):
        assert float(distance(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(cosine(a, b)) == pytest.approx(1)
    assert float(cosine(tree.scale(7.0, a), a)) == pytest.approx(0, abs=1e-6)
    assert float(euclidean(b, a)) == pytest.approx(50 / 25)
    assert (
        float(layerwise(a, {"w": a["w"], "b": torch.tensor([1.0])})) > 0
    )  # the silent tensor counts once it moves


def test_distances_do_not_take_nan_for_agreement():
    a = {"w": torch.tensor([3.0, 4.0])}
    for distance in (cosine, euclidean, layerwise):
        assert math.isnan(float(distance(tree.scale(math.nan, a), a)))


# --- the objective at the truth


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("images", ["pixels", "frequencies", "span"])
@pytest.mark.parametrize("gradient", [Mixed(), Factored(layers="all")])
def test_the_objective_at_the_true_data_is_zero(name, images, gradient):
    evidence, truth, labels = trained(RECIPES[name])
    for distance in ("cosine", "euclidean", "layerwise"):
        method = Simudy(
            images=images, labels=labels, distance=distance, gradient=gradient, adjoint=Recompute(2)
        )
        problem = method.problem(evidence, seed=0)
        dummy = problem.dummy
        there = dummy.coordinates.encode(truth)
        elsewhere = problem.objective(0.0)[1]
        with torch.no_grad():
            dummy.latent.copy_(there)
        assert float(problem.objective(0.0)[1].detach()) < 1e-12 < 1e-3 < float(elsewhere.detach())
        torch.testing.assert_close(problem.images(), truth, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rank_of_the_displacement_is_the_number_of_images(name, dtype):
    evidence, truth, _ = trained(RECIPES[name], dtype=dtype)
    span = Span.of(evidence)
    assert span.rank == N
    back = span.decode(span.encode(truth))
    torch.testing.assert_close(back, truth, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-8)


def test_span_refuses_what_leaves_it():
    evidence, *_ = trained(Recipe(Adam(lr=0.01), epochs=3))
    with pytest.raises(SimudyError, match="Adam moves weights out"):
        Span.of(evidence)
    torch.manual_seed(0)
    model = StatelessModel(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)))
    final = tree.map(lambda p: p + torch.randn_like(p), model.params)
    with pytest.raises(
        SimudyError, match=r"not linear.*set Method\(images='frequencies'\) or pixels"
    ):
        Span.of(Evidence(model, model.params, final, Recipe(), SHAPE, 3, 2))
    with pytest.raises(SimudyError, match=r"set Simudy\(images='span'\)"):
        Simudy(images="pixels", damping=0.01).problem(trained()[0], seed=0)


def test_curvature_is_the_gauss_newton_matrix_of_a_frozen_first_layer():
    """Move C with D̂ held: the squared distance is then quadratic with Hessian 2·D̂D̂ᵀ/‖ΔW1‖² for
    every column.
    """
    evidence, truth, _ = trained(RECIPES["weight decay"])
    span = Span.of(evidence)
    first, c = FirstLayer.of(SpanCoordinates(span), evidence), span.encode(truth)
    moved = {first.name: span.reduce(evidence).displacement[first.name]}
    matrix = first.curvature(moved, c, scale=torch.tensor(2.0), damping=0.0, focus=False)
    influence = (
        (moved[first.name] - first.drift) @ torch.linalg.inv(c)
    ).mT  # D̂ (n, out), C being square
    torch.testing.assert_close(
        matrix, first.scale**2 * influence @ influence.mT / 4, rtol=1e-4, atol=1e-9
    )
    focused = first.curvature(moved, c, scale=torch.tensor(2.0), damping=0.0, focus=True)
    torch.testing.assert_close(
        focused, matrix, rtol=1e-4, atol=1e-9
    )  # at the truth all of D̂ lies in the column space


@pytest.mark.parametrize("recipe", ["weight decay", "mini-batches", "momentum"])
def test_images_are_decoded_from_what_units_did_even_if_some_did_something_else(recipe):
    """Garble D̂ for one unit in seven: least squares goes astray, decoding returns the true
    images.
    """
    evidence, truth, _ = trained(RECIPES[recipe])
    span = Span.of(evidence)
    first, c = FirstLayer.of(SpanCoordinates(span), evidence), span.encode(truth)
    real = span.reduce(evidence).displacement[first.name] - first.drift
    influence = (real @ torch.linalg.inv(c)).mT  # D (n, out), C being square
    garbled = torch.zeros_like(influence)
    garbled[:, ::7] = (
        3 * influence.abs().max() * torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    )
    simulated = {first.name: first.drift + (influence + garbled).mT @ c}
    decoded = first.scale * first.decoded(simulated, c, damping=0.0)
    torch.testing.assert_close(decoded, c, rtol=0, atol=0.02 * float(c.abs().max()))
    squares = (influence + garbled) @ first.columns
    astray = torch.linalg.solve(squares.mT, first.within)
    assert float((astray - c).norm()) > 10 * float((decoded - c).norm())
    still = first.decoded({first.name: first.drift + real}, c, damping=0.1)
    torch.testing.assert_close(
        first.scale * still, c, rtol=0, atol=1e-6
    )  # the truth stays where it is


# --- coordinates


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 5, 5)])
def test_frequencies_lose_nothing_and_look_like_images(shape):
    """The map is onto, unit noise has unit variance, and neighbouring pixels go together."""
    frequencies, generator = Frequencies(shape), torch.Generator().manual_seed(0)
    latent = torch.randn(400, *shape, generator=generator, dtype=torch.float64)
    images = frequencies.decode(latent)
    torch.testing.assert_close(frequencies.encode(images), latent)
    assert images.is_contiguous()  # see `_mixed`
    assert float(images.square().mean()) == pytest.approx(1, rel=0.1)
    assert float((images[..., 1:] * images[..., :-1]).mean()) > 0.5
    flat = Frequencies(shape, decay=0.0).decode(latent)
    assert abs(float((flat[..., 1:] * flat[..., :-1]).mean())) < 0.02 < float(flat.square().mean())
    assert (
        shape[0] == 1 or float(images.mean(1).square().mean()) > 0.7
    )  # colours are faint beside grey


# --- dummies


@pytest.mark.parametrize("images", ["pixels", "frequencies"])
def test_dummies_start_at_given_images_plus_noise(images):
    evidence, truth, _ = trained()
    at = Simudy(images=images, start=truth, noise=0.0).problem(evidence, seed=0)
    torch.testing.assert_close(at.images().detach(), truth)
    near = Simudy(images=images, start=truth, noise=0.1).problem(evidence, seed=0)
    assert 0.05 < float((near.images().detach() - truth).std()) < 0.2
    with pytest.raises(
        SimudyError, match=r"3 images of \(1, 4, 4\) to start 6 dummies.*give 6 or more"
    ):
        Simudy(images="pixels", start=truth[:3]).problem(evidence, seed=0)


def test_balanced_labels_are_balanced_and_learned_ones_are_learned():
    evidence, *_ = trained()
    new = partial(new_dummy, evidence, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(new().labels).tolist() == [2, 2, 2]
    batched, *_ = trained(Recipe(SGD(lr=0.1), epochs=2, batch_size=6), n=12)
    labels = new_dummy(batched, generator=torch.Generator().manual_seed(0)).labels
    assert [torch.bincount(part).tolist() for part in labels.split(6)] == [[2, 2, 2]] * 2
    learned = new(labels="learned", learn=("lr",))
    assert set(learned.variables()) == {"latent", "labels", "log_lr"}
    torch.testing.assert_close(learned.targets().detach().sum(1), torch.ones(N).double())
    assert float(learned.rules(evidence.recipe)[0].lr.detach()) == pytest.approx(0.1)
    with pytest.raises(SimudyError, match="2 labels given for 6 images"):
        new(labels=torch.tensor([0, 1]))
    with pytest.raises(SimudyError, match="one class index each"):
        new(labels=torch.full((6,), 3))
    with pytest.raises(SimudyError, match="choose from balanced"):
        new(labels="typo")


def test_a_learned_learning_rate_finds_the_true_one():
    evidence, truth, labels = trained(Recipe(SGD(lr=0.1), epochs=4))
    guess = Recipe(SGD(lr=0.2), epochs=4)
    method = Simudy(
        images="pixels", labels=labels, recipe=guess, learn=("lr",), distance="euclidean"
    )
    search = Search(
        method.problem(evidence, seed=0), Outer(lr=0.02, iterations=150, lrs={"latent": 0.0})
    )
    with torch.no_grad():
        search.problem.dummy.latent.copy_(truth)
    while search.status == "running":
        search.step()
    assert search.result("finished").learned["lr"] == pytest.approx(0.5, rel=1e-2)


# --- the growing horizon


@pytest.mark.parametrize("name", ["full batch", "mini-batches", "momentum", "schedule"])
def test_the_horizon_grows_to_the_whole_run(name):
    """From a quarter of the steps, which together go as far as all; from ``grow_until`` on the run
    is the true one.
    """
    evidence, truth, labels = trained(RECIPES[name])
    growing = Simudy(images="pixels", labels=labels, grow_until=0.5).problem(evidence, seed=0)
    whole = Simudy(images="pixels", labels=labels).problem(evidence, seed=0)
    steps = evidence.recipe.steps(N)
    seen = [len(growing._rules(progress)) for progress in (0.0, 0.2, 0.4, 0.5, 0.9)]
    assert seen == sorted(seen) and seen[0] == math.ceil(steps / 4) and seen[-2:] == [steps, steps]
    total = sum(rule.lr for rule in evidence.recipe.rules(N))
    assert sum(rule.lr for rule in growing._rules(0.0)) == pytest.approx(total, rel=0.5)
    torch.testing.assert_close(growing.simulate(0.5), whole.simulate(0.5), rtol=0, atol=0)
    with torch.no_grad():
        growing.dummy.latent.copy_(truth)
        coarse, other = growing.objective(0.0)[1], whole.objective(0.0)[1]
    assert 0 < float(coarse) < 0.5 * float(other)


def test_the_best_is_of_the_last_stage():
    """An objective over a shorter horizon is no measure of one over a longer: the best starts
    anew.
    """
    evidence, _, labels = trained()
    search = Search(
        Simudy(images="pixels", labels=labels, grow_until=0.5).problem(evidence, seed=0),
        Outer(lr=0.1, iterations=10),
    )
    stages = [search._stage(i) for i in range(1, 11)]
    assert len(set(stages)) > 1 and len(set(stages[5:])) == 1
    for i in range(5):
        search.best["objective"] = torch.tensor(
            -1.0, dtype=torch.float64
        )  # better than any that comes
        search.step()
        new = stages[i] != stages[max(i - 1, 0)]
        assert (float(search.best["objective"]) > 0) is new
    lax = Search(
        Simudy(images="pixels", labels=labels, grow_until=0.5).problem(evidence, seed=0),
        Outer(iterations=10, tolerance=9.0),
    )
    lax.step()
    assert lax.status == "running"
    while lax.status == "running":
        lax.step()
    assert lax.status == "converged"
    assert (
        lax._stage(lax.iteration - 1) != lax._stage(lax.iteration) == lax._stage(10)
    )  # as soon as it counts


# --- the outer loop


def test_reconstruction_finds_the_images_in_the_span():
    evidence, truth, labels = trained()
    method = Simudy(
        images="span", labels=labels, distance="euclidean", damping=1e-1, gradient=Factored()
    )
    found = reconstruct(
        evidence,
        method=method,
        outer=Outer(lr=0.1, iterations=150, optimizer=NEWTON, tolerance=1e-9),
        seed=1,
    )
    assert found.status == "converged"
    assert found.iterations < 150
    torch.testing.assert_close(found.images, truth.to(found.images), rtol=0, atol=0.05)


def test_refining_ends_exactly_where_derivatives_stall():
    """Units of a ReLU network switch as the images move; the steps at the end do not mind."""

    def relu():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 400), nn.ReLU(), nn.Linear(400, CLASSES))

    evidence, truth, labels = trained(Recipe(SGD(lr=0.02), epochs=8), make=relu)
    method = Simudy(images="span", labels=labels, distance="euclidean")
    without, refined = (
        reconstruct(evidence, method=method, outer=Outer(iterations=100, refine=steps), seed=1)
        for steps in (0, 10)
    )
    assert [row["objective"] for row in refined.history] == [
        row["objective"] for row in without.history
    ]
    assert refined.distance < 1e-3 * without.distance
    assert farthest(truth, refined.images) < 0.05 < 0.5 < farthest(truth, without.images)


def farthest(truth, images):
    return float(torch.cdist(truth.flatten(1), images.flatten(1)).min(1).values.max())


def test_refining_keeps_only_what_is_better_and_can_be_interrupted():
    evidence, truth, labels = trained()
    dampings = []

    class Scripted(Simudy):
        def problem(self, evidence, *, seed):
            problem = super().problem(evidence, seed=seed)

            def refined(*, damping):
                dampings.append(damping)
                if len(dampings) == 5:
                    raise KeyboardInterrupt
                return {"latent": truth + (0, 9, 1e-2, 1e-3, 0)[len(dampings)]}

            problem.refined = refined
            return problem

    found = reconstruct(
        evidence, method=Scripted(images="pixels", labels=labels), outer=Outer(iterations=2)
    )
    assert found.status == "interrupted" and found.iterations == 2
    torch.testing.assert_close(found.images, truth)
    assert dampings == pytest.approx([0.03, 0.3, 0.09, 0.027, 0.0081])


@pytest.mark.parametrize(
    "outer",
    [
        Outer(iterations=12),
        Outer(iterations=12, average=0.8, optimizer=NEWTON, lr=1.0),
        Outer(iterations=3, lr=1.0, optimizer=partial(torch.optim.LBFGS, max_iter=4)),
        Outer(iterations=12, schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=4)),
    ],
)
def test_a_resumed_search_ends_bit_for_bit_the_same(outer):
    evidence, *_ = trained()
    states, finals = [], []
    method = Simudy(images="pixels")
    whole = reconstruct(
        evidence,
        method=method,
        outer=outer,
        on_step=lambda s: states.append(torch_copy(s.state_dict())),
    )
    for state in states[:-1]:
        finals.append(reconstruct(evidence, method=method, outer=outer, resume=state))
    assert len(finals) == outer.iterations - 1
    for found in finals:
        assert torch.equal(found.images, whole.images)
        assert [r["objective"] for r in found.history] == [r["objective"] for r in whole.history]


def test_a_search_resumed_while_it_refines_ends_the_same():
    evidence, *_ = trained()
    states, run = (
        [],
        partial(
            reconstruct, evidence, method=Simudy(images="span"), outer=Outer(iterations=3, refine=4)
        ),
    )
    whole = run(on_step=lambda search: states.append(torch_copy(search.state_dict())))
    assert len(states) == 3 + 4 and [state["refined"] for state in states[2:]] == [0, 1, 2, 3, 4]
    for state in states:
        found = run(resume=state)
        assert torch.equal(found.images, whole.images) and found.objective == whole.objective


def torch_copy(state):
    """Through a file's worth of bytes, tensors and plain data only, as a checkpoint goes."""
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_steps_that_are_not_finite_are_refused_and_the_best_is_kept():
    class Falters(Simudy):
        def problem(self, evidence, *, seed):
            problem = super().problem(evidence, seed=seed)
            whole, calls = problem.objective, []

            def objective(progress):
                calls.append(progress)
                objective, distance = whole(progress)
                return objective * (
                    math.nan if len(calls) in (3, 4) or len(calls) > 8 else 1.0
                ), distance

            problem.objective = objective
            return problem

    evidence, *_ = trained()
    found = reconstruct(evidence, method=Falters(images="pixels"), outer=Outer(iterations=60))
    assert (found.status, found.iterations) == ("diverged", 8 + 10)
    assert bool(torch.isfinite(found.images).all())
    assert found.objective == min(
        r["objective"] for r in found.history if math.isfinite(r["objective"])
    )
    assert math.isfinite(found.history[4]["objective"])  # it went on after the first two


def test_an_interrupted_search_returns_the_best_so_far():
    evidence, *_ = trained()

    def stop(search):
        if search.iteration == 5:
            raise KeyboardInterrupt

    found = reconstruct(evidence, outer=Outer(iterations=50), on_step=stop)
    assert (found.status, found.iterations) == ("interrupted", 5)
    assert found.objective == min(r["objective"] for r in found.history)


@pytest.mark.parametrize("images", ["pixels", "span"])
def test_the_result_is_the_best_and_not_the_last(images):
    evidence, *_ = trained()
    search = Search(Simudy(images=images).problem(evidence, seed=0), Outer(iterations=9))
    search.step()
    best = search.problem.dummy.coordinates.decode(search.best["latent"])
    with torch.no_grad():
        search.variables["latent"].mul_(-7)
    torch.testing.assert_close(search.result("finished").images, best, rtol=0, atol=0)


def test_step_sizes_by_name():
    evidence, *_ = trained()
    search = Search(
        Simudy(images="pixels", learn=("lr",)).problem(evidence, seed=0), Outer(lrs={"log_lr": 0.0})
    )
    search.step()
    assert float(search.variables["log_lr"].detach()) == 0.0
    with pytest.raises(SimudyError, match=r"Outer\(lrs=…\) names 'typo'"):
        Search(Simudy(images="pixels").problem(evidence, seed=0), Outer(lrs={"typo": 0.0}))


def test_clipping_holds_for_the_first_part_of_the_iterations():
    evidence, *_ = trained()
    problem = Simudy(
        images="pixels", clip_above=1e-3, clip_to=1e-4, clip_until=0.25, distance="euclidean"
    ).problem(evidence, seed=0)
    assert (
        float(tree.norm(tree.sub(problem.simulate(0.2), evidence.initial)).detach())
        <= 5 * 0.1 * 1e-4 * 1.001
    )
    assert float(tree.norm(tree.sub(problem.simulate(0.3), evidence.initial)).detach()) > 1e-2
