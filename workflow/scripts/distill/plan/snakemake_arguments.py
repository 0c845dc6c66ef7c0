"""What a command line of Snakemake says about an experiment: its configuration and its working directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT_CONFIG = Path(__file__).resolve().parents[4] / "config/config.yaml"


def read_command_line(arguments: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Return the configuration of a Snakemake command line as written, and its working directory.

    The configuration is to be checked in the working directory, since it names files relative to that.
    """
    from snakemake.cli import parse_args, parse_config
    from snakemake.settings.types import ConfigSettings

    _, args = parse_args(list(arguments))
    files = [Path(file).absolute() for file in args.configfile or [DEFAULT_CONFIG]]
    found = ConfigSettings(config=parse_config(args.config), configfiles=files).overwrite_config
    return found, Path(args.directory or ".").absolute()
