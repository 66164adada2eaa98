"""Files of a model: in a folder, or in a repository of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from regcache_engines import documents

from ..errors import ModelError
from .hub import cache_folder, explain_failure, unreachable


class ModelFiles(Protocol):
    """Where a model's files are."""

    @property
    def title(self) -> str:
        """In the user's words, for messages."""
        ...

    def find(self, name: str) -> Path | None:
        """A file on this disk, downloaded if need be, or None where the model has none such.

        Raises:
            ModelError: there is no such model, or it cannot be had.
        """
        ...

    def absence(self, name: str) -> str:
        """In words, why `find` gave None."""
        ...

    def below(self, folder: str) -> ModelFiles:
        """The files of a subfolder."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this disk."""

    path: Path

    @property
    def title(self) -> str:
        return str(self.path)

    def find(self, name: str) -> Path | None:
        found = self.path / inside(name, self.title)
        return found if found.is_file() else None

    def absence(self, name: str) -> str:
        return f"{self.path} has no {name}"

    def below(self, folder: str) -> Folder:
        return Folder(self.path / inside(folder, self.title))


@dataclass(frozen=True)
class Repository:
    """A repository of the hub; its cache alone where there is no network.

    Attributes:
        name: `ORG/NAME`.
        folder: inside it.
        download: False looks into the cache alone, and never says that a file cannot be had.
    """

    name: str
    folder: str = ""
    download: bool = True

    @property
    def title(self) -> str:
        return self.name

    def absence(self, name: str) -> str:
        why = unreachable()
        if why is None:
            return f"the repository {self.name} has no {name}"
        return f"{name} of {self.name} is not in the cache {cache_folder()}, and {why}"

    def below(self, folder: str) -> Repository:
        return replace(self, folder=str(PurePosixPath(self.folder, inside(folder, self.title))))

    def find(self, name: str) -> Path | None:
        from huggingface_hub import errors as hub_errors
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        path = str(PurePosixPath(self.folder, inside(name, self.title)))
        if not self.download or unreachable() is not None:
            cached = try_to_load_from_cache(self.name, path)
            return Path(cached) if isinstance(cached, str) else None
        try:
            return Path(hf_hub_download(self.name, path))
        except hub_errors.GatedRepoError as error:
            raise ModelError(
                f"the repository {self.name} is gated: accept its terms on huggingface.co, then "
                "log in with `hf auth login`"
            ) from error
        except hub_errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"unknown model '{self.name}': the hub has no such repository, or it is private"
            ) from error
        except hub_errors.LocalEntryNotFoundError as error:  # of EntryNotFoundError's kind
            raise explain_failure(f"{path} of {self.name}", error, "--model FOLDER") from error
        except hub_errors.EntryNotFoundError:
            return None
        except Exception as error:  # the network, a damaged cache
            raise explain_failure(f"{path} of {self.name}", error, "--model FOLDER") from error


def inside(name: str, title: str) -> str:
    """A name that files of the model give for others of its files, if it stays among them.

    Raises:
        ModelError: it leads out of the model's folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ModelError(f"the files of {title} name {name!r}, which is not one of them")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError where the file holds none."""
    content = _parse(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content


def read_list(path: Path) -> list[Any]:
    """A JSON list. Raises ModelError where the file holds none."""
    content = _parse(path)
    if not isinstance(content, list):
        raise ModelError(f"{path} holds no JSON list")
    return content


def _parse(path: Path) -> Any:
    try:
        return documents.read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
