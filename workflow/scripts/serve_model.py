"""Serve an exported model with `transformers serve`, which has the OpenAI API, until Ctrl-C.

    python workflow/scripts/serve_model.py --model output/export/student_kd/banks/full --port 8000

Before it starts, it prints an example request and the commands of other servers for the same folder. If `transformers
serve` does not support the format, as with GGUF, it only prints them.
"""

import argparse
import os
import sys
from pathlib import Path

from distill.common.errors import run_script
from distill.export.serving import build_command, build_request, find_variant, list_servers


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="exported model in output/export, or any model folder"
    )
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the commands, then replace this process by the server."""
    args = parse_args(argv)
    variant = find_variant(args.model)
    is_served_here = variant.library == "transformers"
    print("Other servers for this model:" if is_served_here else "Servers for this model:")
    print(*list_servers(variant, args.model, args.port), sep="\n")
    print("Example request:", build_request(args.model, args.port), sep="\n", flush=True)
    if is_served_here:
        command = build_command(args.model, args.port)
        os.execv(Path(sys.executable).parent / command[0], command)


if __name__ == "__main__":
    run_script(main)
