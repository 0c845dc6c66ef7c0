"""A function in a process of its own, which starts with nothing loaded and leaves no memory taken."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from distill.errors import InputError, start_logging

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
