"""A trained student as folders to deploy: as it is, quantized, or as GGUF. Each has answered before it is there."""

import logging
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from distill.common.errors import InputError, start_logging
from distill.common.files import replace_directory
from distill.common.names import FULL, get_weights_name
from distill.export.gguf_tokenizer import check_written_tokenizer
from distill.export.gguf_weights import write_gguf
from distill.generation.sampling import Generated, Request, Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.chat import encode_prompt
from distill.models.fingerprint import WEIGHTS, list_model_files
from distill.models.load import load_model, load_tokenizer, select_device, select_dtype
from distill.student.copy_layers import ONE_FILE

logger = logging.getLogger(__name__)

NEEDED = ("config.json", "generation_config.json", "tokenizer_config.json")


# Words, digits, an abbreviation, white space and Chinese: what tokenizers cut differently.
PROBE = Request(0, "export", "You are a helpful assistant.", "Isn't 1024 = 2^10?\n\n  水从何而来？请简短回答。")
ANSWER = Sampling(max_new_tokens=16, temperature=0.0)


# Of logits, beside their spread: rounding to 8 bits gives a few hundredths, to 4 some tenths, weights that are read
# wrongly 1 or more.
LARGEST_DISTANCE = {"nf4": 0.9, "int8": 0.9, "gguf": 0.3}


def export_student(student: str, variant: str, dtype: str, device: str, out: Path) -> None:
    """Write a variant of a student's folder, whole or not at all: loaded and answered in a fresh process first.

    Args:
        student: the trained model's folder.
        variant: one of model_names.VARIANTS.
        dtype: of what is not quantized, and of the computation; a key of models.DTYPES.

    Raises:
        InputError: the student cannot be written so, or what was written is not the student.
    """
    with replace_directory(out) as folder:
        if variant == FULL:
            copy_files(Path(student), folder, with_weights=True)
        elif variant == "gguf":
            write_gguf(student, folder / get_weights_name(variant))
            copy_files(Path(student), folder, with_weights=False)
        else:
            write_quantized(student, variant, dtype, device, folder)
        call_fresh(check_export, folder, student, variant, dtype, device)


def copy_files(student: Path, folder: Path, with_weights: bool) -> None:
    """Configurations, tokenizer, template and weights; what is there already stays."""
    for path in list_model_files(student):
        target = folder / path.name
        is_weights = path.suffix in WEIGHTS or path.name.endswith(".index.json")
        if target.exists() or (is_weights and not with_weights):
            continue
        # No hard link: Snakemake stamps its outputs, and the student's own weights with them.
        shutil.copyfile(path, target)


def write_quantized(student: str, variant: str, dtype: str, device: str, folder: Path) -> None:
    """The weights in int8 or nf4 by bitsandbytes, with a config.json that says so, and all else of the student.

    Raises:
        InputError: as `load_model`.
    """
    place = select_device(device)
    model = load_model(student, place, select_dtype(dtype, place), variant)
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    copy_files(Path(student), folder, with_weights=False)
    del model
    torch.cuda.empty_cache()  # for the process that loads it again


def check_export(folder: Path, student: str, variant: str, dtype: str, device: str) -> dict[str, Any]:
    """Load a variant and have it answer; compare its tokenizer, and its logits where it has other numbers.

    Returns:
        `answer`, its text; with other numbers than the student's also `distance` and `agreement` of `compare_logits`.

    Raises:
        InputError: it is not whole, its tokenizer is another one, or its logits are.
    """
    missing = [name for name in (*NEEDED, get_weights_name(variant)) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{student}: variant {variant}: expected {', '.join(missing)}, found no such file")
    tokenizer, original = load_tokenizer(str(folder)), load_tokenizer(student)
    ids = encode_prompt(original, PROBE.system, PROBE.prompt)
    if encode_prompt(tokenizer, PROBE.system, PROBE.prompt) != ids or tokenizer.get_vocab() != original.get_vocab():
        raise InputError(f"{student}: variant {variant}: expected the student's tokenizer, found another one")
    if variant == "gguf":
        check_written_tokenizer(folder / get_weights_name(variant), original, PROBE.prompt)
    engine = TransformersEngine(ModelSource(str(folder), dtype=dtype, device=device), ANSWER, 1)
    answer = answer_probe(engine)
    found: dict[str, Any] = {"answer": answer.text}
    logger.info("%s: loaded in a fresh process, %d tokens answered: %r", variant, answer.tokens, answer.text)
    if variant == FULL:
        return found
    logits, place = read_logits(engine.model, ids), engine.model.device
    del engine
    original_model = load_model(student, place, select_dtype(dtype, place))
    distance, agreement = compare_logits(logits, read_logits(original_model, ids))
    logger.info(
        "%s: logits at a distance of %.3f, %.0f %% of likeliest tokens the same", variant, distance, 100 * agreement
    )
    if not distance <= LARGEST_DISTANCE[variant]:
        expected = f"expected logits at a distance of at most {LARGEST_DISTANCE[variant]} from the student's"
        raise InputError(f"{student}: variant {variant}: {expected}, found {distance:.3f}; leave the variant out")
    return found | {"distance": distance, "agreement": agreement}


def answer_probe(engine: TransformersEngine) -> Generated:
    """The answer to PROBE."""
    ((_, answer),) = [pair for pairs in engine.generate([PROBE]) for pair in pairs]
    return answer


def read_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits after each token, float32 on the CPU, shape (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def compare_logits(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """(distance beside the expected ones' spread, share of places with the same likeliest token).

    A row's mean counts for neither, as for a softmax. Shapes (tokens, vocabulary).
    """
    found, expected = (one - one.mean(-1, keepdim=True) for one in (found, expected))
    agreement = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return float((found - expected).norm() / expected.norm()), float(agreement)


Result = TypeVar("Result")


def call_fresh(function: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module returns, called in a new process; what it raises is raised here.

    Raises:
        InputError: the process was killed, as where memory runs out.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_logging) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            text = f"{function.__name__}: expected its process to end by itself, found it killed"
            raise InputError(f"{text}, as where memory runs out") from error
