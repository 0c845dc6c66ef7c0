"""The memory that jobs request, from the memory plan of `make plan` where there is one."""

from collections.abc import Mapping
from typing import Any

from distill.common.variants import is_base
from distill.memory_plan.devices import find_device
from distill.memory_plan.plan_file import PLAN_FILE, Plan, find_estimates, read_plan, request_mb
from distill.plan.experiment import Config, get_first_base
from distill.plan.stages import Lengths, StageLister

ALIKE = {"answer_questions": "predict_answers"}  # rules whose jobs take at most the memory of another's


def find_requests(config: Config, plan: Plan | None) -> dict[tuple[str, frozenset[tuple[str, str]]], int]:
    """Return the requests in MB by rule and wildcards, for all stages that the plan has.

    A plan of another configuration has other stages, so nothing of it is used.
    """
    if plan is None:
        return {}
    device, lister = find_device(plan.device), StageLister(config, Lengths(*plan.lengths))
    requests = {}
    for stage in lister.list_stages():
        if not isinstance(stage, str) and (estimates := find_estimates(plan, stage)):
            requests[stage.rule, frozenset(stage.wildcards.items())] = request_mb(stage, estimates, device)
    return requests


def find_plan() -> list[str]:
    """Return the file of the memory plan in the working directory; none if there is none."""
    return [str(PLAN_FILE)] if PLAN_FILE.exists() else []


class MemoryRequests:
    """The requests of an experiment's jobs.

    Raises:
        InputError: the file of the plan is not one.
    """

    def __init__(self, config: Config):
        self.config = config
        self.requests = find_requests(config, read_plan(PLAN_FILE))

    def get(self, rule: str, default: int, wildcards: Mapping[str, Any]) -> int:
        """Return the request of a job in MB.

        Args:
            rule: its rule.
            default: the request without a plan.
            wildcards: its wildcards, which may be more than those that decide the memory.
        """
        own = dict(wildcards)
        if rule in ALIKE and is_base(own["model"]):
            own["model"] = get_first_base(self.config, own["model"])
        found = [
            (len(needed), request)
            for (name, needed), request in self.requests.items()
            if name == ALIKE.get(rule, rule) and needed <= own.items()
        ]
        return max(found)[1] if found else default  # of the stage that is most specific
