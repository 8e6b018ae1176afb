"""Values that the processes of a job exchange, with their types."""

from typing import Any, TypeVar

from detectron2.utils import comm

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """Every process's value, by rank, in each process; detectron2's ``all_gather`` has no types."""
    values: Any = comm.all_gather(value)
    return values


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    return gather(value)[0]
