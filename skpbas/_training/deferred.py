"""Fitted attributes that are computed on first access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


@dataclass(frozen=True)
class Deferred(Generic[T]):
    """A value that a :class:`DeferrableAttribute` computes on first access."""

    compute: Callable[[], T]


class DeferrableAttribute(Generic[T]):
    """An instance attribute that may be assigned a :class:`Deferred` value and returns the computed one.

    Used for the detector that a callback receives at the end of an epoch: exemplars and threshold take seconds to
    compute, and few callbacks predict. After ``fit`` a detector has no deferred values.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        attributes = vars(instance)
        if self.name not in attributes:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        value = attributes[self.name]
        if isinstance(value, Deferred):
            value = attributes[self.name] = value.compute()
        return value

    def __set__(self, instance: Any, value: T | Deferred[T]) -> None:
        vars(instance)[self.name] = value
