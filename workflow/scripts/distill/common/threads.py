"""How torch's threads wait for each other on a CPU, which OpenMP reads when torch is imported. Imports no torch."""

import os

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Turns of the loop in which a thread of GNU OpenMP waits before it sleeps; by default it waits for milliseconds. Where
# other processes need the processors, such a loop takes the time of the thread that it waits for, and jobs take several
# times as long. See benchmarks/waiting.py.
SPINS = "1000"


def limit_spinning() -> None:
    """Let threads that wait sleep early, unless the user has set how they wait.

    Other implementations of OpenMP, such as Intel's, sleep early enough by themselves and ignore the setting.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ[VARIABLES[0]] = SPINS
