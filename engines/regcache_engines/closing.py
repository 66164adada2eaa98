"""Objects that hold native memory are context managers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from .errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self


class Closing(ABC):
    """`with` closes it at the end."""

    @abstractmethod
    def close(self) -> None:
        """Release the memory. May be called twice."""

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            f"{type(self).__name__} holds native memory and cannot be pickled or copied; pass the "
            "bundle's path, and load it there"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
