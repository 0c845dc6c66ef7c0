"""The memory plan's figures for the measurements of gpu.py, on fake tensors: a job of gpu.py, see job.py."""

import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from job import explain, run_as_job

from distill.memory_plan.cuda_guard import load_cuda_guard
from distill.memory_plan.devices import Device, find_device
from distill.memory_plan.stage import Generating, ModelShape, Reading, Training, Work

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_fused": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
MIB = 2**20


def plan_peak(
    measurement: dict[str, Any], models: dict[str, Any], settings: dict[str, Any], total_bytes: int | None
) -> dict[str, int]:
    """Return the peak that the memory plan expects of a measurement.

    Args:
        measurement: `part`, `way` and `batch` of a `Measurement`.
        models: content of config.json of `teacher` and `student`.
        settings: see `Settings`.
        total_bytes: memory of the GPU; None on a CPU.

    Returns:
        `peak_allocated_mb` and `peak_reserved_mb` in MiB on a GPU, `peak_resident_mb` on a CPU, where it is that of the
        tensors alone.

    Raises:
        ValueError: the measurement is not one of this project's.
    """
    from distill.memory_plan.estimate import estimate

    device = find_device("cpu") if total_bytes is None else Device("this GPU", total_bytes)
    found = estimate(describe_work(measurement, models, settings, device), device)
    if device.kind == "cpu":
        return {"peak_resident_mb": found.live // MIB}
    return {"peak_allocated_mb": found.live // MIB, "peak_reserved_mb": found.reserved // MIB}


def describe_work(
    measurement: dict[str, Any], models: dict[str, Any], settings: dict[str, Any], device: Device
) -> Work:
    """Return a measurement as the memory plan describes it; arguments as in `plan_peak`."""
    from distill.models.batches import AUTO_BATCH_SIZE

    part, way = measurement["part"], measurement["way"]
    dtype = "bfloat16" if settings["precision"] == "bf16" else "float32"
    quantization = "int8" if way == "online_int8" else "none"
    teacher = ModelShape(name="teacher", config=models["teacher"], dtype=dtype, quantization=quantization)
    prompt, completion = settings["prompt_tokens"], settings["completion_tokens"]
    if part == "kd_step" and way in ("online", "online_int8", "hidden", "topk"):
        return Training(
            student=ModelShape(name="student", config=models["student"], dtype=dtype),
            teacher=teacher,
            method="forward_kl",
            signal=way.removesuffix("_int8"),
            top_k=settings["top_k"],
            temperature=settings["temperature"],
            alpha=settings["alpha"],
            parameters={},
            lora=None,
            optimizer=OPTIMIZERS[settings["optimizer"]],
            precision=settings["precision"],
            batch_size=measurement["batch"],
            gradient_checkpointing=settings["gradient_checkpointing"],
            prompt_tokens=prompt,
            answer_tokens=completion,
        )
    if part == "generation" and way == "ours":
        longest, rows = completion + completion // 2, settings["records_rolling"]
        lengths = {"prompt_tokens": prompt, "answer_tokens": longest}
        return Generating(model=teacher, batch_size=rows, temperature=0.0, top_p=1.0, **lengths)
    if part == "signals":
        return Reading(
            model=teacher,
            kind=way,
            batch_size=min(AUTO_BATCH_SIZE[device.kind], settings["signal_records"]),
            prompt_tokens=prompt,
            answer_tokens=completion,
            top_k=settings["top_k"],
            temperatures=(settings["temperature"],),
        )
    raise ValueError(f"no plan for {part}/{way}")


def plan_all(job: dict[str, Any]) -> dict[str, Any]:
    """Return the planned peak of each measurement of a job by name; for a plan that fails, `failed`, the reason."""
    if job["total_bytes"] is not None:
        load_cuda_guard()  # before torch is imported
    from shapes import SHAPES

    teacher, student, _ = SHAPES[job["settings"]["shape"]]
    models = {"teacher": teacher.to_dict(), "student": student.to_dict()}
    found: dict[str, Any] = {}
    for name, measurement in job["measurements"].items():
        try:
            found[name] = plan_peak(measurement, models, job["settings"], job["total_bytes"])
        except Exception as error:  # the plan may need newer packages than the measurement
            traceback.print_exc()
            found[name] = {"failed": explain(error)}
    return found


if __name__ == "__main__":
    run_as_job(plan_all)
