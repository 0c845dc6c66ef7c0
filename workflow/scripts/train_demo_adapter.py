r"""Train a category's LoRA adapter for the demo's teacher on SFT records.

python workflow/scripts/train_demo_adapter.py --model models/teacher --sft artifacts/sft/sft_train_banks.jsonl \
    --out models/adapters/banks
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.demo.arguments import add_demo_arguments
from distill.demo.options import DemoAdapter


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model that the adapter is for")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the adapter to")
    add_options(parser, DemoAdapter)
    add_demo_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the adapter, log how many answers keep the format, and write it."""
    args = parse_args(argv)
    import torch  # takes seconds, as do the following imports; parse arguments first

    from distill.demo import models as demo_models
    from distill.demo.batches import draw_batches, encode_chats
    from distill.demo.tokenizer import read_chats
    from distill.models.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(str(args.model))
    split = (args.split_seed, args.val_fraction, args.test_fraction)
    training, held_out = encode_chats(tokenizer, read_chats(args.sft), args.max_length, split)
    model = load_model(str(args.model), torch.device("cpu"), torch.float32, trainable=True)
    model = demo_models.add_adapter(model, args.rank, args.seed)
    batches = draw_batches(training, args.batch_size, args.max_batch_tokens, random.Random(args.seed))
    demo_models.train_to_format(model, tokenizer, batches, held_out, args.steps, args.learning_rate)
    demo_models.save_adapter(model, args.out)


if __name__ == "__main__":
    run_script(main)
