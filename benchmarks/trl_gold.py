"""Train a student with another tokenizer by TRL's GOLDTrainer, for cross_tokenizer.py, which runs this in a process.

    python benchmarks/trl_gold.py --data SPLITS --teacher FOLDER --student FOLDER --out FOLDER

The teacher's answers of the training split are learned off-policy by the hybrid loss: tokens that both vocabularies
have are compared by the forward KL divergence, the others by their sorted probabilities. The schedule is that of
train_student.py. Needs TRL.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gold import GOLDConfig, GOLDTrainer

from distill.common.errors import run_script
from distill.records.splits import read_split
from distill.student.options import TrainOptions


def main(argv: list[str] | None = None) -> None:
    """Train the student and save it with its tokenizer."""
    args = parse_args(argv)
    usual = TrainOptions()
    records = read_split(args.data, "train")
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    trainer = GOLDTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.student, dtype="float32"),
        teacher_model=AutoModelForCausalLM.from_pretrained(args.teacher, dtype="float32"),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"messages": one["messages"]} for one in records]),
        args=GOLDConfig(
            output_dir=str(args.out),
            lmbda=0.0,  # answers of the teacher only
            beta=0.0,  # forward KL
            use_uld_loss=True,
            uld_use_hybrid_loss=True,
            uld_crossentropy_weight=1 - args.alpha,
            uld_distillation_weight=args.alpha,
            uld_student_temperature=args.temperature,
            uld_teacher_temperature=args.temperature,
            teacher_tokenizer_name_or_path=args.teacher,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=1,
            learning_rate=args.learning_rate,
            lr_scheduler_type=usual.lr_scheduler,
            warmup_steps=usual.warmup_ratio,
            weight_decay=usual.weight_decay,
            max_grad_norm=usual.max_grad_norm,
            optim=usual.optimizer,
            max_length=usual.max_length,
            gradient_checkpointing=False,
            bf16=args.precision == "bf16",
            use_cpu=args.device == "cpu",
            seed=args.seed,
            save_strategy="no",
            logging_steps=20,
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(str(args.out))
    tokenizer.save_pretrained(args.out)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the splits")
    parser.add_argument("--teacher", required=True, help="folder of a chat model")
    parser.add_argument("--student", required=True, help="folder of the student before training")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained student")
    parser.add_argument("--epochs", type=float, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--alpha", type=float, required=True, help="weight of the divergence")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
