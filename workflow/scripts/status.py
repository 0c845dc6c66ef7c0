"""Show what is done and what is to do, as a table of categories by steps, with reasons. It runs Snakemake's dry run.

    python workflow/scripts/status.py --profile local [--configfile FILE] [--directory DIR]

Accepts all options of Snakemake. Loads no model, needs no network and changes nothing. If the working directory has
jobs in Slurm's queue, they are listed below the table.
"""

import sys

from distill.common.errors import run_script
from distill.plan.status import find_directory, read_queue, render_queue, render_table, run_dry, select_jobs


def main(argv: list[str] | None = None) -> None:
    """Print the table and the queue."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    to_do, every = run_dry(arguments)
    print(render_table(to_do, every, colour=sys.stdout.isatty()))
    queue, directory = read_queue(), find_directory(to_do)
    if queue and directory:
        print(render_queue(select_jobs(queue, directory)))


if __name__ == "__main__":
    run_script(main)
