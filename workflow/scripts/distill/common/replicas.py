"""Names of replicas: the trainings of one student with several seeds (`train.seeds`)."""

import re

REPLICA = re.compile(r"(?P<student>.+)-seed(?P<seed>[0-9]+)")


def get_replica_name(student: str, seed: int) -> str:
    """The name under which a student is trained with one of its seeds."""
    return f"{student}-seed{seed}"


def is_replica(name: str) -> bool:
    """Whether the name is that of a replica; no student may be called so in the configuration."""
    return REPLICA.fullmatch(name) is not None


def drop_seed(name: str) -> str:
    """The student that a replica belongs to; any other name stays.

    >>> drop_seed("student_kd-seed42"), drop_seed("student_kd")
    ('student_kd', 'student_kd')
    """
    found = REPLICA.fullmatch(name)
    return found["student"] if found else name


def list_replicas(name: str, models: list[str]) -> list[str]:
    """The models that a name stands for: the model itself, or else the replicas of the student; empty without any."""
    return [name] if name in models else [model for model in models if drop_seed(model) == name]
