"""Show which categories are done, what is to do in each, and why: a table made from Snakemake's own dry run.

    python workflow/scripts/status.py --profile local [--configfile FILE] [--directory DIR]

Takes any of Snakemake's options. Loads no model, reaches no network, changes nothing. Jobs of the same working
directory that are in Slurm's queue are listed below the table.
"""

import sys

from distill.common.errors import run_script
from distill.plan.status import ask_queue, find_directory, render_queue, render_table, run_dry, select_jobs


def main(argv: list[str] | None = None) -> None:
    """Dry-run and print."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    todo, every = run_dry(arguments)
    print(render_table(todo, every, colour=sys.stdout.isatty()))
    queue, directory = ask_queue(), find_directory(todo)
    if queue and directory:
        print(render_queue(select_jobs(queue, directory)))


if __name__ == "__main__":
    run_script(main)
