r"""Train the demo's teacher or student from scratch on SFT records.

python workflow/scripts/train_demo_model.py --tokenizer models/tokenizer --sft artifacts/sft/*.jsonl \
    --out models/teacher --min-coverage 0.9
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options, read_options
from distill.demo.arguments import add_demo_arguments
from distill.demo.options import DemoStudent, DemoTeacher


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="output folder of train_demo_tokenizer.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    add_options(parser, DemoTeacher, defaults={"min_coverage": None})
    add_demo_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the model until it keeps the answer format, and write it."""
    args = parse_args(argv)
    from distill.demo import models as demo_models  # imports torch; parse arguments first
    from distill.demo.batches import draw_batches, encode_chats
    from distill.demo.tokenizer import load_demo_tokenizer, read_chats

    tokenizer = load_demo_tokenizer(args.tokenizer)
    split = (args.split_seed, args.val_fraction, args.test_fraction)
    training, held_out = encode_chats(tokenizer, read_chats(args.sft), args.max_length, split)
    model = demo_models.build_model(tokenizer, read_options(args, DemoStudent), args.seed)
    batches = draw_batches(training, args.batch_size, args.max_batch_tokens, random.Random(args.seed))
    demo_models.train_to_format(
        model, tokenizer, batches, held_out, args.steps, args.learning_rate, args.min_coverage, args.max_rounds
    )
    demo_models.save_model(model, tokenizer, args.out)


if __name__ == "__main__":
    run_script(main)
