"""The ONNX file behind an engine: what is loaded later is what was loaded first."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from .errors import EngineError
from .files import sha256_bytes
from .onnx_wire import has_external_data


class ModelFile:
    """An ONNX file, open until `close`, so that another one under its name changes nothing.

    Args:
        path: the file.
        sha256: of a bundle's model. Only bytes that have it are handed out; a file without, which
            may keep its weights in files beside it, is handed out as its path.

    Raises:
        EngineError: there is no such file.
    """

    def __init__(self, path: Path | str, sha256: str | None = None) -> None:
        self.path = Path(path)
        self._sha256 = sha256
        try:
            # a pipe without a writer would wait for one
            more = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            descriptor = os.open(self.path, os.O_RDONLY | more)
        except OSError as error:
            raise EngineError(
                f"no model at {self.path}; give a bundle folder or an .onnx file"
            ) from error
        self._descriptor, self.close = descriptor, weakref.finalize(self, os.close, descriptor)
        if not self.path.is_file():
            raise EngineError(f"no model at {self.path}; give a bundle folder or an .onnx file")
        self._known = self._state()

    def source(self) -> Path | bytes:
        """What a runtime loads.

        Raises:
            EngineError: it is another file than the one that was first opened, or a bundle's that
            keeps weights in other files.
        """
        if self._sha256 is not None:
            with open(self._descriptor, "rb", closefd=False) as file:
                file.seek(0)
                data = file.read()
            if sha256_bytes(data) == self._sha256:
                if has_external_data(data):
                    raise EngineError(
                        f"{self.path} keeps weights in other files, which no hash of the bundle "
                        "covers, or hides whether it does; do not use this bundle"
                    )
                return data
        elif self._state() == self._known:
            return self.path
        raise EngineError(f"{self.path} was changed since it was opened; load it again")

    def _state(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
