"""Export a trained student: as trained, quantized, or as a GGUF file; smoke-tested before it is published."""

import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gguf
import torch

from distill.common.disk import check_free
from distill.common.errors import InputError, start_logging
from distill.common.files import replace_directory
from distill.common.hashing import hash_uid
from distill.common.quantization_schemes import SCHEMES
from distill.common.variants import FULL, VARIANTS
from distill.export.compress import compress
from distill.export.compressed_weights import write_compressed
from distill.export.gguf_quantize import quantize_file
from distill.export.gguf_tokenizer import check_written_tokenizer
from distill.export.gguf_weights import F16, Q8_0, Format, write_gguf
from distill.generation.sampling import Generated, Request, Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.chat import ChatTemplate, get_end_of_turn_id
from distill.models.examples import encode_example
from distill.models.fingerprint import WEIGHTS, list_model_files
from distill.models.load import load_model, load_tokenizer, select_device, select_dtype
from distill.models.save import ONE_FILE, write_stop_tokens
from distill.models.scale_file import read_rounding
from distill.records.splits import read_split

logger = logging.getLogger(__name__)

CALIBRATION_LENGTH = 2048  # tokens of a text at most, as usual for GPTQ
REQUIRED_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
# Tokenizers differ in how they split contractions, digits, white space and Chinese.
PROBE = Request(0, "export", "You are a helpful assistant.", "Isn't 1024 = 2^10?\n\n  水从何而来？请简短回答。")
SAME_LOGITS = 1e-3  # distance of logits of the same weights; kernels may add in another order
PROBE_SAMPLING = Sampling(max_new_tokens=16, temperature=0.0)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
        student: folder of the trained model.
        variant: name in VARIANTS.
        dtype: data type of the computation and of the weights that are not quantized; a key of `load.DTYPES`.
        device: `auto`, `cpu` or `cuda`.
        data: files of the train split, for variants that are calibrated on it.
        calibration_records: records that are read of them.
        quantizer: Python that has LLM Compressor; see `compress.find_quantizer`.
    """

    student: str
    variant: str
    dtype: str
    device: str
    data: tuple[Path, ...] = ()
    calibration_records: int = 0
    quantizer: str | None = None


def export_student(export: Export, out: Path) -> None:
    """Write a variant of a student to a folder that appears only if it passes `check_export` in a fresh process.

    Raises:
        InputError: the student cannot be exported as this variant, or the exported model differs from the student.
    """
    check_free({out: estimate_bytes(export)}, f"the variant {export.variant}")
    with replace_directory(out) as folder:
        logger.info("writing %s of %s", export.variant, export.student)
        write_variant(export, folder)
        logger.info("checking what was written: an answer of it is compared with the student's")
        call_fresh(check_export, export, folder)


def estimate_bytes(export: Export) -> int:
    """Return an upper bound of what `write_variant` writes: no variant is larger than its student.

    A file that llama.cpp quantizes stands beside one with all weights in float16 meanwhile.
    """
    weights = sum(path.stat().st_size for path in list_model_files(export.student))
    return weights * (2 if WRITERS[export.variant] is write_q4_k_m else 1)


# ---- Writing ----


def write_variant(export: Export, folder: Path) -> None:
    """Write the weights of a variant, and the student's configuration and tokenizer files that the writer left out.

    Raises:
        InputError: the student cannot be exported as this variant, or a file is missing.
    """
    WRITERS[export.variant](export, folder)
    for path in list_model_files(export.student):
        target = folder / path.name
        if not (is_weights(path) or target.exists()):
            shutil.copyfile(path, target)
    check_files(export, folder)
    write_stop_tokens(folder)


def is_weights(path: Path) -> bool:
    """Whether a file contains weights or is their index."""
    return path.suffix in WEIGHTS or path.name.endswith(".index.json")


def write_full(export: Export, folder: Path) -> None:
    """Copy the weights as they are."""
    for path in filter(is_weights, list_model_files(export.student)):
        # A hard link would share its time stamp with the student's file, and Snakemake updates that of its outputs.
        shutil.copyfile(path, folder / path.name)


def write_bitsandbytes(export: Export, folder: Path) -> None:
    """Write weights that bitsandbytes quantized, and a config.json with the quantization settings.

    Raises:
        InputError: see `load_model`.
    """
    device = select_device(export.device)
    model = load_model(export.student, device, select_dtype(export.dtype, device), export.variant, is_run=False)
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    del model
    torch.cuda.empty_cache()  # the fresh process needs the memory


def write_gguf_file(export: Export, folder: Path, form: Format) -> None:
    """Write weights, settings and tokenizer as one GGUF file with weights of the data type `form`.

    Raises:
        InputError: see `write_gguf`.
    """
    write_gguf(export.student, folder / VARIANTS[export.variant].weights_file, form)


def write_q4_k_m(export: Export, folder: Path) -> None:
    """Write weights, settings and tokenizer as one GGUF file whose weights llama.cpp quantizes to Q4_K_M.

    Raises:
        InputError: see `write_gguf` and `quantize_file`.
    """
    whole = folder / "float16.gguf"
    write_gguf(export.student, whole, F16)
    quantize_file(whole, folder / VARIANTS[export.variant].weights_file, gguf.LlamaFileType.MOSTLY_Q4_K_M)
    whole.unlink()


def write_calibrated(export: Export, folder: Path) -> None:
    """Write weights that LLM Compressor quantized, and a config.json with their format.

    Raises:
        InputError: there are no records to calibrate on; see `compress`.
    """
    compress(export.student, export.variant, export.dtype, encode_samples(export), export.quantizer, folder)


def encode_samples(export: Export) -> list[list[int]]:
    """Token ids of the calibration texts: conversations of the train split, chosen by a hash of their uids.

    Raises:
        InputError: there is no record.
    """
    records = [record for path in export.data for record in read_split(path.parent, path.stem)]
    if not records:
        files = ", ".join(map(str, export.data)) or "no file"
        raise InputError(f"variant {export.variant}: expected records of the train split, found none in {files}")
    records.sort(key=lambda record: hash_uid("calibration", 0, record["uid"]))
    chat = ChatTemplate(load_tokenizer(export.student))
    examples = [encode_example(one, chat, None, False, None) for one in records[: export.calibration_records]]
    return [(example["prompt"] + example["completion"])[:CALIBRATION_LENGTH] for example in examples]


def write_rounded(export: Export, folder: Path, scheme: str) -> None:
    """Write weights that are rounded to a scheme and packed, and a config.json with the quantization settings.

    Raises:
        InputError: see `write_compressed`.
    """
    write_compressed(export.student, scheme, folder)


# Writers of the weights, by variant; `write_variant` adds the other files.
WRITERS: dict[str, Callable[[Export, Path], None]] = {
    FULL: write_full,
    "nf4": write_bitsandbytes,
    "int8": write_bitsandbytes,
    "gptq": write_calibrated,
    "fp8": write_calibrated,
    "gguf": partial(write_gguf_file, form=Q8_0),
    "gguf_f16": partial(write_gguf_file, form=F16),
    "gguf_q4_k_m": write_q4_k_m,
    **{scheme.variant: partial(write_rounded, scheme=name) for name, scheme in SCHEMES.items()},
}


# ---- Checking ----


def check_export(export: Export, folder: Path) -> dict[str, Any]:
    """Load an exported model, compare it with the student and generate an answer.

    Returns:
        `answer`, the generated text; for a quantized variant also `distance` and `agreement` from `compare_logits`.

    Raises:
        InputError: a file is missing, the tokenizer or the logits differ from the student's, or the model does not
            compute or does not stop.
    """
    check_files(export, folder)
    ids = check_tokenizer(export, folder)
    engine = TransformersEngine(ModelSource(str(folder), dtype=export.dtype, device=export.device), PROBE_SAMPLING, 1)
    try:
        logits = read_logits(engine.model, ids)
    except InputError as error:
        raise unsupported(export, f"{error}; remove {export.variant} from export.variants") from error
    check_stop(export, engine.model, load_tokenizer(str(folder)), ids)
    answer = answer_probe(engine)
    logger.info("%s: loaded in a fresh process, generated %d tokens: %r", export.variant, answer.tokens, answer.text)
    largest_distance = find_largest_distance(export)
    if largest_distance is None:
        return {"answer": answer.text}
    del engine  # frees memory for the student
    distance, agreement = check_logits(export, logits, ids, largest_distance)
    return {"answer": answer.text, "distance": distance, "agreement": agreement}


def find_largest_distance(export: Export) -> float | None:
    """The largest distance allowed between the logits of a variant and the student's; None if they are not compared.

    A student that was trained with the variant's scheme has its values already.
    """
    trained = read_rounding(export.student, torch.float32)
    if trained and trained[0].scheme.variant == export.variant:
        return SAME_LOGITS
    return VARIANTS[export.variant].largest_distance


def check_files(export: Export, folder: Path) -> None:
    """Raise an InputError that names the required files that are missing."""
    names = (*REQUIRED_FILES, VARIANTS[export.variant].weights_file)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{export.student}: variant {export.variant}: expected {', '.join(missing)}, found no such file"
        )


def check_tokenizer(export: Export, folder: Path) -> list[int]:
    """Compare the exported tokenizer with the student's; return the token ids of PROBE.

    Raises:
        InputError: vocabulary or token ids differ.
    """
    tokenizer, original = load_tokenizer(str(folder)), load_tokenizer(export.student)
    ids = ChatTemplate(original).encode_prompt(PROBE.system, PROBE.prompt)
    if (
        ChatTemplate(tokenizer).encode_prompt(PROBE.system, PROBE.prompt) != ids
        or tokenizer.get_vocab() != original.get_vocab()
    ):
        place = f"{export.student}: variant {export.variant}"
        raise InputError(f"{place}: expected the student's tokenizer, found a different one")
    weights_file = folder / VARIANTS[export.variant].weights_file
    if weights_file.suffix == ".gguf":
        check_written_tokenizer(weights_file, original, PROBE.prompt)
    return ids


def check_stop(export: Export, model: Any, tokenizer: Any, ids: list[int]) -> None:
    """Check that plain `generate`, with the folder's own settings, ends with the turn.

    Args:
        export: the variant and its student.
        model: the exported model.
        tokenizer: its tokenizer.
        ids: token ids of a prompt.

    Raises:
        InputError: `generate` continues after the token that ends a turn.
    """
    end = get_end_of_turn_id(tokenizer)
    prompt = torch.tensor([ids], device=model.device)
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=PROBE_SAMPLING.max_new_tokens,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda *_: [end],  # the model generates nothing but the end of the turn
    )
    count = found.shape[1] - len(ids)
    if count > 1:
        token, stops = tokenizer.convert_ids_to_tokens(end), model.generation_config.eos_token_id
        raise unsupported(
            export,
            f"expected generation to stop after {token!r} (token {end}), which ends a turn in the chat template, "
            f"found {count - 1} more tokens; the stop tokens of the folder are {stops}",
        )


def unsupported(export: Export, problem: str) -> InputError:
    """The error for an export that cannot be used."""
    return InputError(f"{export.student}: variant {export.variant}: {problem}")


def check_logits(export: Export, logits: torch.Tensor, ids: list[int], largest_distance: float) -> tuple[float, float]:
    """Compare logits of an exported model with the student's.

    Args:
        export: the variant and its student.
        logits: float32 on the CPU, shape (tokens, vocabulary).
        ids: token ids that give these logits.
        largest_distance: largest distance allowed.

    Returns:
        Distance and agreement, see `compare_logits`.

    Raises:
        InputError: the distance exceeds `largest_distance`.
    """
    device = select_device(export.device)
    student = load_model(export.student, device, select_dtype(export.dtype, device))
    distance, agreement = compare_logits(logits, read_logits(student, ids))
    text = "%s: distance of logits from the student's %.3f, same most likely token at %.0f %% of positions"
    logger.info(text, export.variant, distance, 100 * agreement)
    if not distance <= largest_distance:  # true for NaN, too
        expected = f"expected logits at a distance of at most {largest_distance} from the student's"
        raise InputError(
            f"{export.student}: variant {export.variant}: {expected}, found {distance:.3f}; "
            f"remove {export.variant} from export.variants"
        )
    return distance, agreement


def answer_probe(engine: TransformersEngine) -> Generated:
    """The engine's answer to PROBE."""
    ((_, answer),) = [pair for pairs in engine.generate([PROBE]) for pair in pairs]
    return answer


def read_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of one sequence, float32 on the CPU, shape (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def compare_logits(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Compare logits of shape (tokens, vocabulary) after centring each row, which leaves the softmax unchanged.

    Returns:
        (distance, agreement): the norm of the difference relative to the norm of the expected logits, and the share of
        positions with the same most likely token.
    """
    found, expected = (logits - logits.mean(-1, keepdim=True) for logits in (found, expected))
    agreement = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return float((found - expected).norm() / expected.norm()), float(agreement)


# ---- Fresh process ----


def call_fresh(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a module-level function in a new process; return its result or raise its exception.

    The new process is killed if this one is.

    Raises:
        InputError: the new process was killed, for example because it ran out of memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_fresh_process) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            text = f"{function.__name__}: expected the process to finish, found it killed"
            raise InputError(f"{text}; it may have run out of memory") from error


def start_fresh_process() -> None:
    """Start logging, and make sure that the process does not outlive its parent."""
    start_logging()
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """Wait for the parent process to end, then end this process without cleanup."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
