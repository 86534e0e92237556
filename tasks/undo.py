"""The class of an undo, with its task, texts and settlement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefect import Task
from sqlmodel import Session


class Taken(NamedTuple):
    """A saga record's result, for the words of its step.

    It is what the step took from the order, or what its undo gave back.
    ``in_doubt`` says that its outcome is unknown. ``titles`` are those of the books by id, where
    each title is to be named.
    """

    result: Mapping[str, Any]
    currency: str
    in_doubt: bool = False
    titles: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """The undo of a step.

    Attributes:
        task: What carries it out for a group of orders.
        place: Its place in the order of undoing, from 1.
        in_words: Returns what was taken or given back, for people; empty if it is nothing.
        settle: Books what a person has seen to, given the step's result and whether it is back;
            returns the undo's result, which has ``written_off`` where it is not.
        written_off: What a settlement says of it, as the console's help shows it.
        put_back: The same where it is booked as back; none where that is not for the shop to book.
    """

    task: Task[[list[str]], list[str]]
    place: int
    in_words: Callable[[Taken], str]
    settle: Callable[[Session, Mapping[str, Any], bool], dict[str, Any]]
    written_off: str
    put_back: str | None = None

    @property
    def name(self) -> str:
        """Return its task's name."""
        return self.task.name
