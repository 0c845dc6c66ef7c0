"""Show what is done, what runs and what is to do, as a table of categories by steps, with reasons.

    python workflow/scripts/status.py --profile local [--configfile FILE] [--directory DIR] [--watch [SECONDS]]

Accepts all options of Snakemake, whose dry run it uses. Loads no model, needs no network and changes no results. Below
the table are the running jobs with their progress, and the working directory's jobs in Slurm's queue. --watch refreshes
them until Ctrl-C, every 10 seconds by default.
"""

import sys

from distill.common.errors import run_script
from distill.plan.status import Status
from distill.plan.watch import take_watch, watch


def main(argv: list[str] | None = None) -> None:
    """Print the table, the running jobs and the queue."""
    arguments, seconds = take_watch(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    status = Status(arguments, colour=sys.stdout.isatty())
    if seconds is None:
        print(status.render())
    else:
        watch(status.render, seconds)


if __name__ == "__main__":
    run_script(main)
