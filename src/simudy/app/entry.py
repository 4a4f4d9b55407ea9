"""Where the console scripts begin: Ctrl-C ends them in silence from here on, while Python still
imports the rest.
"""

from __future__ import annotations

import signal

from simudy.app.signals import SIGNALS, leave_at_once

for _number in SIGNALS:
    signal.signal(_number, leave_at_once)


def simudy() -> None:
    """The command ``simudy``."""
    from simudy.app.cli import main

    main()


def simudy_sweep() -> None:
    """The command ``simudy-sweep``."""
    from simudy.app.sweep.command import main

    main()
