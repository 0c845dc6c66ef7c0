"""Open the local dashboard of a tracker over a run that is going on, or over one that has ended, until Ctrl-C.

    python workflow/scripts/watch.py --directory runs/demo

It shows what jobs have reported with `report_to` in the configuration, and follows those that are running.
"""

import argparse
import os
import sys
from pathlib import Path

from distill.common.errors import InputError, run_script
from distill.common.trackers import DASHBOARDS, FOLDER, check_installed, find_dashboards


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(), help="working directory of the run")
    parser.add_argument("--tracker", choices=DASHBOARDS, help="by default the first of these that has runs")
    parser.add_argument("--port", type=int, default=6006)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Replace this process by the dashboard."""
    args = parse_args(argv)
    folder = (args.directory / FOLDER).absolute()
    found = find_dashboards(folder)
    wanted = args.tracker or next(iter(found), None)
    if wanted not in found:
        names = args.tracker or " | ".join(DASHBOARDS)
        raise InputError(
            f"{folder}: expected runs of {names}, found {', '.join(found) or 'none'}; "
            "set report_to in the configuration, for example to [tensorboard], before the jobs start"
        )
    check_installed([wanted])
    command = DASHBOARDS[wanted].build_command(folder, args.port)
    os.environ.update(DASHBOARDS[wanted].build_environment(folder, args.port))
    print(f"{wanted}: http://127.0.0.1:{args.port}/ shows {folder}; Ctrl-C ends it", flush=True)
    os.execv(Path(sys.executable).parent / command[0], command)


if __name__ == "__main__":
    run_script(main)
