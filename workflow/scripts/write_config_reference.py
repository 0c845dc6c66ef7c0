"""Write what describes the configuration: the tables of config/README.md and the JSON schema for editors.

    python workflow/scripts/write_config_reference.py

Run it after changing an option, an allowed value, or a registered method, engine, metric, variant or source format.
`make setup` runs it with --schema-only: the schema is not kept in git.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_atomically
from distill.plan.config_reference import render_schema, update_reference

ROOT = Path(__file__).resolve().parents[2]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=ROOT / "config/README.md", help="page with the tables")
    parser.add_argument(
        "--schema", type=Path, default=ROOT / "workflow/schemas/config.schema.yaml", help="JSON schema to write"
    )
    parser.add_argument("--schema-only", action="store_true", help="leave config/README.md as it is")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the files."""
    args = parse_args(argv)
    texts = {args.schema: render_schema()}
    if not args.schema_only:
        texts[args.readme] = update_reference(args.readme.read_text(encoding="utf-8"))
    for path, text in texts.items():
        with write_atomically(path) as file:
            file.write(text)


if __name__ == "__main__":
    run_script(main)
