"""A hostile command in this process, without the pictures, which take the longest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

import pytest
from verdict import TINY, Case, judge, time_limit


@pytest.fixture
def attempt(cli, tmp_path, monkeypatch) -> Callable[..., None]:
    """``attempt(case, without=keys of TINY)``: lay it out, run it, judge it."""
    from simudy.app.tasks import finish

    monkeypatch.setattr(finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b""))
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(case: Case, without: Sequence[str] = ()) -> None:
        case.prepare(tmp_path)
        tiny = [word for word in TINY if word.split("=")[0] not in without]
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tests' errors, but no person's
            outcome = cli(*tiny, *case.argv, tiny=False)
        os.chdir(tmp_path)
        judge(*outcome, tmp_path, refused=case.refused)

    return call
