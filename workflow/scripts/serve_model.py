"""Serve an exported model with the OpenAI API by `transformers serve`, until Ctrl-C.

    python workflow/scripts/serve_model.py --model output/export/student_kd/banks/full --port 8000

Says first how to ask it, and which other servers take the same folder. Of a GGUF file it says that alone.
"""

import argparse
import os
import sys
from pathlib import Path

from distill.common.errors import run_script
from distill.export.serving import build_command, build_request, list_alternatives


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="under output/export, or any model's folder")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print, and become the server."""
    args = parse_args(argv)
    command = build_command(args.model, args.port)
    alternatives = list_alternatives(args.model, args.port, command is None)
    print("Served by:" if command is None else "Served by transformers, or by:", *alternatives, sep="\n")
    print("To ask it:", build_request(args.model, args.port), sep="\n", flush=True)
    if command:
        os.execv(Path(sys.executable).parent / command[0], command)


if __name__ == "__main__":
    run_script(main)
