"""The memory of a stage on a device: measured with few layers where models have many, and extrapolated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from distill.common.errors import InputError
from distill.generation.generate import has_full_attention
from distill.memory_plan.caching_allocator import CachingAllocator
from distill.memory_plan.devices import SPARE, Device
from distill.memory_plan.fake_models import make_config
from distill.memory_plan.live_memory import Point
from distill.memory_plan.measure import (
    ALL,
    Layers,
    Measured,
    count_rows,
    measure_generation,
    measure_reading,
    measure_training,
)
from distill.memory_plan.plan_file import Estimate
from distill.memory_plan.stage import Generating, Loading, ModelShape, Reading, Training, Work
from distill.models.batches import AUTO_BATCH_SIZE
from distill.models.load import DTYPES
from distill.models.memory import estimate_weights
from distill.models.split_check import ERRORS

# Bytes of weights on their way to the device: two files of the 5 GB that transformers writes. An assumption.
PASSING = 10**10
FEW = (2, 4)  # layers of the runs that are extrapolated: the figures are linear in the number of layers


@dataclass(frozen=True)
class Figures:
    """A measurement as numbers that can be extrapolated."""

    weights: float
    peaks: dict[Point, float]
    reserved: float
    sharded: float

    @property
    def peak(self) -> Point:
        """The phase and the operation with the largest number of bytes alive."""
        return max(self.peaks, key=lambda point: self.peaks[point])


def estimate(work: Work, device: Device, exact: bool = False) -> Estimate:
    """Estimate the memory of a stage; see `estimate_work`.

    Raises:
        InputError: a model does not run on fake tensors, or generates otherwise than by continuous batching.
    """
    try:
        return estimate_work(work, device, exact)
    except ERRORS as error:
        reason = str(error).partition("\n")[0]
        kinds = ", ".join(sorted({str(model.config.get("model_type")) for model in work.models}))
        raise InputError(f"{kinds} does not run on fake tensors: {type(error).__name__}: {reason}") from error


def estimate_work(work: Work, device: Device, exact: bool) -> Estimate:
    """Estimate the memory of a stage.

    Args:
        work: what it does.
        device: where. With few rows to spare, generation and scoring take fewer at a time, as the jobs do.
        exact: whether all layers are run, whatever their number.
    """
    if isinstance(work, Loading):
        return estimate_loading(work, device)
    if isinstance(work, Training):
        return estimate_run(partial(measure_training, work, device.kind), work, device, work.batch_size, exact)
    if isinstance(work, Generating):
        if not has_full_attention(make_config(work.model.config)):
            raise InputError(
                f"{work.model.config.get('model_type')} generates in padded batches, which are not planned"
            )
        free = device.usable - count_weights(work.model)
        rows = count_rows(work, make_config(work.model.config), DTYPES[work.model.dtype], max(free, 0))
    else:
        rows = work.batch_size or AUTO_BATCH_SIZE[device.kind]
    while True:
        found = estimate_run(measure_rows(work, device, rows), work, device, rows, exact)
        if found.fits != "no" or rows == 1:
            return found
        rows //= 2  # as the job does when memory runs out


def estimate_loading(work: Loading, device: Device) -> Estimate:
    """Estimate a stage that loads models and writes them by the weights: bitsandbytes quantizes no fake ones."""
    weights = sum(count_weights(model) for model in work.models)
    on_device = 0 if work.on_host else weights
    return Estimate(
        weights=weights,
        live=on_device,
        reserved=on_device,
        host=weights if work.on_host else count_host_weights(work),
        where="weights",
        rows=0,
        fits=judge(on_device, device),
    )


def count_layers(model: ModelShape) -> int:
    """Number of a model's layers."""
    return int(make_config(model.config).get_text_config().num_hidden_layers)


def count_weights(model: ModelShape) -> int:
    """Bytes of a model's weights."""
    return estimate_weights(make_config(model.config), DTYPES[model.dtype], model.quantization)


def measure_rows(work: Generating | Reading, device: Device, rows: int) -> Callable[[Layers], Measured]:
    """A measurement of a number of sequences at a time, which takes the number of layers."""
    if isinstance(work, Generating):
        return partial(measure_generation, work, device.kind, rows)
    return partial(measure_reading, work, device.kind, rows)


def estimate_run(measure: Callable[[Layers], Measured], work: Work, device: Device, rows: int, exact: bool) -> Estimate:
    """Estimate a stage whose rows are given.

    Args:
        measure: measures it with some layers of each model.
        work: the stage.
        device: where.
        rows: sequences at a time.
        exact: whether all layers are run.
    """
    found = run_all(measure) if exact else extrapolate(measure, [count_layers(model) for model in work.models])
    live, reserved = found.peaks[found.peak], found.reserved if device.kind == "cuda" else found.peaks[found.peak]
    if isinstance(work, Training) and work.strategy == "fsdp":
        away = found.sharded * (1.0 if work.fsdp_offload else 1 - 1 / work.ranks)
        live, reserved = live - away, reserved - away
    return Estimate(
        weights=round(found.weights),
        live=round(live),
        reserved=round(reserved),
        host=count_host_weights(work),
        where=f"{found.peak[0]} ({found.peak[1].removeprefix('aten.')})",
        rows=rows,
        fits=judge(reserved, device),
    )


def count_host_weights(work: Work) -> int:
    """Bytes of weights that a job holds in the host's memory before they are on the device.

    A student is loaded there in float32; other models pass through it, a few files at a time.
    """
    if not isinstance(work, Training):
        return max(min(count_weights(model), PASSING) for model in work.models)
    passing = [min(count_weights(model), PASSING) for model in work.models[1:]]
    return sum(passing) + estimate_weights(make_config(work.student.config), torch.float32, "none")


def judge(reserved: float, device: Device) -> str:
    """Whether memory fits a device; see `Estimate.fits`."""
    if reserved > device.usable:
        return "no"
    return "tight" if reserved + device.reserved > (1 - SPARE) * device.memory else "yes"


def summarize(measured: Measured) -> Figures:
    """The figures of a measurement, with what the allocator reserves for it.

    Raises:
        InputError: nothing was allocated.
    """
    if not measured.events:
        raise InputError("the memory plan measured no tensors")
    allocator = CachingAllocator()
    allocator.replay(measured.events)
    return Figures(measured.weights, dict(measured.peaks), allocator.peak, measured.sharded)


def run_all(measure: Callable[[Layers], Measured]) -> Figures:
    """Measure with all layers."""
    return summarize(measure(ALL))


def extrapolate(measure: Callable[[Layers], Measured], totals: Sequence[int]) -> Figures:
    """Measure with few layers of each model, and once more for each model with twice as many; extrapolate linearly.

    Args:
        measure: measures a stage with some layers of each model.
        totals: number of layers of each model.
    """
    few, more = FEW
    starts = tuple(min(total, few) for total in totals)
    if all(total <= more for total in totals):
        return run_all(measure)
    first = summarize(measure(starts))
    slopes = []
    for index, total in enumerate(totals):
        if total == starts[index]:
            continue
        step = min(more, total)
        other = summarize(measure((*starts[:index], step, *starts[index + 1 :])))
        slopes.append((other, (total - starts[index]) / (step - starts[index])))

    def reach(base: float, others: Sequence[float]) -> float:
        return base + sum((other - base) * factor for other, (_, factor) in zip(others, slopes, strict=True))

    # Each operation by itself: with more layers, another one may reach the peak.
    peaks = {
        point: reach(value, [other.peaks.get(point, value) for other, _ in slopes])
        for point, value in first.peaks.items()
    }
    runs = [first, *(other for other, _ in slopes)]
    # What the allocator takes beyond the tensors depends on how they follow each other more than on their number.
    beyond = max(one.reserved - max(one.peaks.values()) for one in runs)
    return Figures(
        reach(first.weights, [other.weights for other, _ in slopes]),
        peaks,
        max(peaks.values()) + beyond,
        reach(first.sharded, [other.sharded for other, _ in slopes]),
    )
