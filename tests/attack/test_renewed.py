"""What stands still for a part of a search: for which, and after a stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import small_victim

from simudy import Outer
from simudy.attack.methods.anchored import Anchored
from simudy.attack.methods.corrected import Corrected
from simudy.attack.methods.renewed import RenewedProblem
from simudy.attack.methods.simudy import Simudy
from simudy.attack.search import Search

pytestmark = pytest.mark.usefixtures("float64")

CASES = {
    "anchored": lambda times, until: Anchored(images="pixels", paths=times, anchored_until=until),
    "nodes": lambda times, until: Anchored(
        images="pixels", paths=times, anchored_until=until, nodes=2
    ),
    "corrected": lambda times, until: Corrected(
        images="pixels", corrections=times, corrected_until=until
    ),
}


def posed(case: str, *, times: int = 10, until: float = 0.95) -> RenewedProblem:
    problem: Any = CASES[case](times, until).problem(small_victim()[0], seed=0)
    return problem


@pytest.mark.parametrize("case", CASES)
def test_the_last_part_simulates_the_run_itself(case):
    problem = posed(case, until=0.5)
    plain: Any = Simudy(images="pixels").problem(small_victim()[0], seed=0)
    expected = plain.displacements()[0]
    problem.displacements(0.45)
    with torch.no_grad():
        for variables in (problem.variables(), plain.variables()):
            variables["latent"].mul_(1.5)
    moved = plain.displacements()[0]
    before, whole = (problem.displacements(p)[0] for p in (0.49, 0.5))
    assert all(torch.equal(whole[name], value) for name, value in moved.items())
    assert any(not torch.allclose(before[name], value) for name, value in moved.items())
    assert any(not torch.allclose(moved[name], value) for name, value in expected.items())


@pytest.mark.parametrize("case", CASES)
def test_it_stands_for_its_part_of_the_search(case):
    problem = posed(case)
    problem.objective(0.0)
    before = problem._made
    with torch.no_grad():
        problem.variables()["latent"].add_(0.1)
    problem.objective(0.09)
    assert problem._made is before and problem.stage(0.0) == problem.stage(0.09)
    problem.objective(0.1)
    assert problem._made is not before and problem.stage(0.09) != problem.stage(0.1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at", [3, 5, 12])
def test_a_stopped_search_goes_on_bit_for_bit(tmp_path, at, case):
    """In the middle of a part too, where what stands is made again where it was."""
    outer = Outer(lr=0.1, iterations=14)
    whole, cut = (Search(posed(case, times=3), outer) for _ in range(2))
    found = whole.run().images
    for _ in range(at):
        cut.step()
    torch.save(cut.state_dict(), tmp_path / "state")
    again = Search(posed(case, times=3), outer)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(again.run().images, found)
