"""Fields of a `config.json` in the layout of the library transformers.

That library leaves a field out of the file where it may equal the default of its class (the SigLIP
files on the hub have nearly empty ones), so its defaults belong to the format. Whoever reads the
file says which of them were taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regcache_export.spec import Activation

from ..errors import ModelError, UnsupportedEncoderError

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    # one formula, the tanh form, under four names
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}


class Fields:
    """The fields of one model, with the defaults of its class.

    Args:
        values: as in the file.
        defaults: of transformers, for the fields that decide the structure.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.defaulted: dict[str, Any] = {}
        self._values, self._defaults = values, defaults

    def _get(self, name: str) -> Any:
        value = self._values.get(name)
        if value is None:
            value = self.defaulted[name] = self._defaults[name]
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> ModelError:
        return ModelError(f"{self.where}: {name} is {value!r}; {expected} is expected")

    def count(self, name: str) -> int:
        """A whole number from 1 on; from 0 on where that is the default."""
        value = self._get(name)
        least = 0 if self._defaults[name] == 0 else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(name, value, "a positive whole number")
        return value

    def identifier(self, name: str) -> int:
        """A token id, from 0 on."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, value, "a token id")
        return value

    def number(self, name: str) -> float:
        """A positive number."""
        value = self._get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def switch(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def pair(self, name: str) -> tuple[int, int]:
        """Height and width in pixels; one number stands for both."""
        value = self._get(name)
        sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
            raise self._wrong(name, value, "one number of pixels, or height and width")
        return sides[0], sides[1]

    def text(self, name: str) -> str:
        """A word."""
        return str(self._get(name))

    def activation(self) -> Activation:
        """The canonical name of `hidden_act`.

        Raises:
            UnsupportedEncoderError: another one.
        """
        value = self._get("hidden_act")
        if value not in ACTIVATIONS:
            raise UnsupportedEncoderError(f"unsupported MLP activation {value}")
        return ACTIVATIONS[value]
