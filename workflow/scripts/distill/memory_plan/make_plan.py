"""Make the memory plan of an experiment, stage by stage, from the last plan as far as that still holds."""

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from distill.common.digest import code_digest, digest_of
from distill.common.errors import InputError
from distill.memory_plan.changes import list_changes
from distill.memory_plan.devices import Device
from distill.memory_plan.estimate import estimate
from distill.memory_plan.plan_file import Estimate, Plan, get_key
from distill.memory_plan.stage import Stage, Training, Work

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def get_version(script: Path) -> str:
    """Digest of a script's code and the libraries that decide an estimate."""
    return digest_of([code_digest(script), *(version(name) for name in LIBRARIES)])[:16]


def fill_plan(plan: Plan, stages: Sequence[Stage], device: Device) -> Iterator[None]:
    """Add what a plan lacks of some stages; yields after each estimate, so that the caller can save it.

    Args:
        plan: a plan for this device, complete or not.
        stages: the stages.
        device: the device.
    """
    for stage in stages:
        for work in stage.work:
            key = get_key(work, device.name)
            if key not in plan.estimates | plan.problems:
                logger.info("planning %s", stage.name)
                try:
                    plan.estimates[key] = estimate(work, device)
                except InputError as error:
                    plan.problems[key] = str(error)
                yield
            if key in plan.problems:
                continue
            if needs_changes(work, plan.estimates[key]) and key not in plan.changes:
                plan.changes[key] = find_changes(work, device)
                yield


def needs_changes(work: Work, found: Estimate) -> bool:
    """Whether the plan lists changes: for what does not fit, and for trainings without a tenth to spare.

    Generation and scoring take fewer sequences at a time when memory runs out.
    """
    return found.fits == "no" or (found.fits == "tight" and isinstance(work, Training))


def find_changes(work: Work, device: Device) -> list[tuple[str, Estimate]]:
    """What each change makes of a stage, up to the first one with which it fits; if none does, several together."""
    changes, found = list(list_changes(work)), []
    for change in changes:
        found.append((change.text, estimate(change.apply(work), device)))
        if found[-1][1].fits == "yes":
            return found
    texts: dict[str, str] = {}  # by key of the setting: a later change of the same one replaces it
    for change in changes:
        work = change.apply(work)
        texts[change.text.partition(":")[0]] = change.text
        if len(texts) > 1:
            found.append((" and ".join(texts.values()), estimate(work, device)))
            if found[-1][1].fits == "yes":
                break
    return found
