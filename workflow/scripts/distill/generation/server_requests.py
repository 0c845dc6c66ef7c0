"""Sends many requests to a server at a time, and decides when its failures end the job."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from openai import AsyncOpenAI

from distill.common.errors import InputError, format_problems
from distill.generation.engine import RefusedError
from distill.generation.server_errors import Problem

LEAST_IN_A_ROW = 3  # consecutive failures of a server; one or two may be requests whose answer takes too long

Outcome = tuple[Any, Any]  # a request, and its answer or a Problem


class Client(Protocol):
    """Sends single requests."""

    base_url: str

    def open(self) -> AsyncOpenAI:
        """Return the connections, which belong to an event loop."""

    async def check_server(self, connections: AsyncOpenAI) -> None:
        """Check once that the server serves the model."""

    async def check_refusals(self, connections: AsyncOpenAI) -> None:
        """Check with a harmless request that the server does not refuse every request."""

    async def send(self, connections: AsyncOpenAI, request: Any) -> Outcome:
        """Send one request; return it with its answer, or with why there is none."""


class ServerRequests:
    """Keeps a number of requests open at a server until all are answered.

    Args:
        client: sends the requests, which have the attributes `id`, `uid` and `sample`.
        concurrency: number of open requests.
    """

    def __init__(self, client: Client, concurrency: int):
        self.client, self.concurrency = client, concurrency

    def send_all(self, requests: Sequence[Any]) -> Iterator[list[Outcome]]:
        """Yield answers as they arrive, in any order.

        The event loop runs only while the caller waits for the next answers; there is no background thread. Closing the
        generator early cancels open requests.

        Raises:
            InputError: the server is unreachable, rejects the key, does not serve the model or refuses every request.
                Requests that failed after all retries are reported together after the others are answered, or as soon
                as the server fails many times in a row.
            RefusedError: the server refuses some requests and has answered all others.
        """
        failed: list[tuple[Any, Problem]] = []
        tasks: set[asyncio.Task[Outcome]] = set()
        waiting, unsent, in_a_row, refused_in_a_row, is_serving = iter(requests), len(requests), 0, 0, False
        most = max(self.concurrency, LEAST_IN_A_ROW)
        with asyncio.Runner() as runner:
            loop, connections = runner.get_loop(), self.client.open()
            try:
                runner.run(self.client.check_server(connections))
                while in_a_row < most and unsent + len(tasks):
                    sent = [*islice(waiting, self.concurrency - len(tasks))]
                    unsent -= len(sent)
                    tasks |= {loop.create_task(self.client.send(connections, request)) for request in sent}
                    outcomes, tasks = runner.run(wait_for_any(tasks))
                    answered = [(request, found) for request, found in outcomes if not isinstance(found, Problem)]
                    if answered:
                        in_a_row, refused_in_a_row, is_serving = 0, 0, True
                        yield answered
                    problems = [(r, judge(found, is_serving)) for r, found in outcomes if isinstance(found, Problem)]
                    in_a_row += sum(problem.is_server_fault for _, problem in problems)
                    refused_in_a_row += sum(problem.is_refusal for _, problem in problems)
                    failed += problems
                    self.raise_fatal(problems)
                    is_last = not unsent + len(tasks)
                    if refused_in_a_row >= most or (refused_in_a_row and is_last and not is_serving):
                        runner.run(self.client.check_refusals(connections))
                        refused_in_a_row, is_serving = 0, True
            finally:
                runner.run(close(connections, tasks))
        self.raise_failed(failed, unsent + len(tasks))

    def raise_fatal(self, problems: Sequence[tuple[Any, Problem]]) -> None:
        """Raise the first fatal problem, if there is one."""
        for _, problem in problems:
            if problem.is_fatal:
                raise InputError(f"{self.client.base_url}: {problem.text}")

    def raise_failed(self, failed: Sequence[tuple[Any, Problem]], unsent: int) -> None:
        """Raise one error that lists all failed requests, if there are any; `unsent` requests were abandoned."""
        if not failed:
            return
        what = f"answers of {self.client.base_url}"
        if unsent:
            what += f", which keeps failing: {unsent} more requests were abandoned"
        named = [f"id {r.id} (uid {r.uid}, sample {r.sample}): {problem.text}" for r, problem in failed]
        message = format_problems(named, what)
        if unsent or not all(problem.is_refusal for _, problem in failed):
            raise InputError(message)
        raise RefusedError(message, [request for request, _ in failed])


def judge(problem: Problem, is_serving: bool) -> Problem:
    """Return a problem as it looks once the server has answered others: 403 and 404 are then about the request."""
    if is_serving and problem.is_fatal and problem.status in (403, 404):
        return problem._replace(is_fatal=False, is_refusal=True)
    return problem


async def wait_for_any(tasks: set[asyncio.Task[Outcome]]) -> tuple[list[Outcome], set[asyncio.Task[Outcome]]]:
    """Wait until a task is done; return (outcomes of all done tasks, tasks that are still open)."""
    done, still_open = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in done], still_open


async def close(connections: AsyncOpenAI, tasks: set[asyncio.Task[Outcome]]) -> None:
    """Cancel open requests and close the connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await connections.close()
