"""The tasks into which a stream is cut, as the user asks for them or as the benchmark has them by default."""

from __future__ import annotations

from cl_bench import streams
from cl_bench.errors import UserError, counted
from cl_bench.experiment import Limits, Tasks
from cl_bench.streams import Benchmark, Source
from cl_bench.streams.scenarios import sizes_of


def class_incremental(data: Benchmark, tasks: Tasks | None, limits: Limits) -> Tasks:
    """The tasks of a class-incremental stream; for `tasks=None` those that the benchmark has by default.

    Raises:
        UserError: the classes cannot be split like this, or the limits ask for more tasks than there are.
    """
    if tasks is None:
        own = data.scenario == "class-incremental"
        tasks = data.tasks if own else streams.default_tasks(data.num_classes)
    try:
        length = len(sizes_of(tasks, data.num_classes))
    except ValueError as error:
        if isinstance(tasks, int):
            raise UserError(f"--tasks {tasks} does not divide the {data.num_classes} classes of {data.name}") from error
        raise UserError(f"--tasks: {error}, the classes of {data.name}") from error
    _check_length(length, limits)
    return tasks


def domain_incremental(name: str, source: Source, tasks: Tasks | None, limits: Limits) -> int:
    """The number of tasks of a domain-incremental stream: one for each domain.

    Raises:
        UserError: the data has no domains, `tasks` is not their number, or a domain has no images.
    """
    domains = source.domains
    if not domains:
        with_domains = ", ".join(other for other in streams.names() if streams.has_domains(other))
        raise UserError(f"{name} has no domains, so it cannot be domain-incremental; these have: {with_domains}")
    if tasks not in (None, len(domains)):
        raise UserError(f"--tasks: {name} has {len(domains)} domains, each of which is a task; leave it out")
    for part, store in (("training", source.train), ("test", source.test)):
        assert store.domains is not None
        for domain in domains:
            if not (store.domains == domain).any():
                raise UserError(f"{name}: domain '{domain}' has no {part} images; complete the data or the split list")
    _check_length(len(domains), limits)
    return len(domains)


def _check_length(length: int, limits: Limits) -> None:
    if limits.tasks and limits.tasks > length:
        raise UserError(
            f"--limit-tasks {limits.tasks} is more than the {counted(length, 'task')} of the stream; leave it out"
        )
