"""What `regcache eval` does: open the bundle, its runners and the data, and collect records."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import Preprocess
from regcache_engines.text import TextTower
from regcache_engines.text_head import make_head

from ..compat import require
from ..data.altered_stream import AlteredStream
from ..data.captions import read_captions
from ..data.seen import seen_line
from ..data.settings import is_stream, is_torchvision
from ..data.sources import DEMO, open_data, open_files, shared_source
from ..data.stream import ImageStream
from ..errors import BundleError, ConfigError, DataError
from ..work.progress import Reporter
from .instance_records import instance_records
from .metrics import INSTANCES, Array, retrieval_metrics
from .probes import knn_logits, linear_probe_logits
from .records import (
    KNN,
    PROBE,
    RETRIEVAL,
    Embedded,
    Record,
    classify,
    compare_captions,
    embed,
    fidelity_records,
    top_classes,
    zero_shot_records,
)
from .runner import Runner
from .runners import make_runners

if TYPE_CHECKING:
    from ..encoders.load import LoadedModel
    from .crew import Crew

log = logging.getLogger(__name__)

DEFAULT_TEMPLATES = "openai"
"""Of the original model's text tower; the bundle's has those of its export."""

TASKS = ("auto", "fidelity", INSTANCES, KNN, PROBE)


@dataclass
class Session:
    """An open bundle with its runners. Use `with session:`.

    Attributes:
        path: the bundle.
        on: names of runners; the first one is the reference of comparisons.
        plan_folder: where plan.json is; None is beside the bundle.
        head_file: in place of the bundle's head.
        templates: prompts for classes that the bundle's head does not have.
        batch_size, threads, device, decoders, workers, seed, limit: as on the command line.
    """

    path: Path
    on: tuple[str, ...]
    reporter: Reporter
    plan_folder: Path | None = None
    head_file: Path | None = None
    templates: str = DEFAULT_TEMPLATES
    batch_size: int = 32
    threads: int | None = None
    device: str = "auto"
    decoders: int = 0
    workers: str | None = None
    seed: int = 0
    limit: int | None = None
    warnings: list[str] = field(default_factory=list)
    crew: Crew | None = field(default=None, init=False, repr=False)
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Session:
        with self.reporter.stage(f"opening {self.path.name} as {', '.join(self.on)}"):
            self._open_runners()
        if self.workers is not None:
            with self.reporter.stage("starting workers"):
                self._open_crew()
        return self

    def _open_runners(self) -> None:
        self.bundle = Bundle.open(self.path)
        if self.head_file is not None:
            self.bundle = self.bundle.with_head(self.head_file)
        self.preprocess = Preprocess(self.bundle.preprocess)
        try:
            self.runners: list[Runner] = make_runners(
                self.on,
                self.bundle,
                self.plan_folder,
                self.threads,
                self.batch_size,
                self._stack,
                self.device,
            )
        except BaseException:
            self._stack.close()
            raise

    def _open_crew(self) -> None:
        try:
            require("torch", "search")
            from .crew import open_crew

            crew = open_crew(self.runners, self.workers, self.device, self.threads)
            self.crew = self._stack.enter_context(crew)
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the bundle's head; empty without one."""
        return self.bundle.labels if self.bundle.has_text_features else ()

    @property
    def notes(self) -> list[str]:
        """How a runner came to be, where its name does not say it."""
        return [runner.note for runner in self.runners if runner.note]

    @property
    def provenance(self) -> dict[str, Any]:
        found = self.bundle.manifest.get("provenance")
        return dict(found) if isinstance(found, dict) else {}

    @cached_property
    def model(self) -> LoadedModel:
        """The model that the bundle was made from, with its text side.

        A warning says where its weights are no longer those: a checkpoint may be written anew.

        Raises:
            BundleError: the bundle does not say which model that is.
            ConfigError, ModelError: it cannot be loaded.
        """
        name = self.provenance.get("model")
        if not isinstance(name, str):
            raise BundleError(f"{self.path} does not say which model it was made from")
        require("torch", "search")
        from ..encoders.load import load_model
        from ..encoders.settings import ModelSettings

        options = self.provenance.get("options")
        size = options.get("img_size") if isinstance(options, dict) else None
        found = load_model(
            name,
            self.provenance.get("pretrained"),
            ModelSettings(img_size=size).image_size,
            self.templates,
        )
        made_of = self.provenance.get("weights_sha256")
        if made_of is not None and found.weights_sha256() != made_of:
            self._warn(
                f"{name} has other weights than this bundle was made from: its text tower may not "
                "belong to the bundle's features, and figures by it may say nothing"
            )
        return found

    @cached_property
    def _tower(self) -> TextTower | None:
        """The bundle's text tower, where it has one."""
        if not self.bundle.has_text:
            return None
        return self._stack.enter_context(TextTower(self.bundle, threads=self.threads))

    def images(self, files: Sequence[Path], top: int) -> list[dict[str, Any]]:
        """Top classes of single images, per runner.

        Raises:
            BundleError: the bundle has no head.
            DataError: a file is missing or cannot be read.
        """
        if not self.labels:
            raise BundleError(
                f"{self.path} has no zero-shot head, so it cannot name classes; compare its "
                "features with --data DIR --task fidelity"
            )
        for file in files:
            if not file.is_file():
                raise DataError(f"there is no image {file}")
        embedded = self._embed(open_files(files, self.preprocess))
        if len(embedded.keys) < len(files):
            raise DataError(self.warnings[-1])
        head, scale = self.bundle.text_features, self.bundle.logit_scale
        return top_classes(embedded, head, scale, self.labels, top)

    def evaluate(
        self, data: str, task: str = "auto", train_data: str | None = None
    ) -> list[Record]:
        """Records of one data set: zero-shot where there is a head, else fidelity.

        Raises:
            DataError, ConfigError: as `open_data`; or no labels where the task needs them.
        """
        stream = self._open(data, labels=task not in ("fidelity", INSTANCES))
        if line := seen_line(self.provenance, data):
            self._warn(line)
        embedded = self._embed(stream)
        records = fidelity_records(data, embedded)
        if task == INSTANCES:
            copies = self._embed(AlteredStream.of(stream, self.seed))
            return instance_records(data, embedded, copies, self.seed) + records
        if task in (KNN, PROBE):
            return self._probe(data, task, embedded, stream, train_data) + records
        if task == "fidelity" or embedded.labels is None:
            return self._need(records, data)
        head = self._head(stream.class_names)
        if head is None:
            return self._need(records, data)
        features, scale = head
        return zero_shot_records(data, embedded, features, scale, self.seed) + records

    def retrieve(self, root: Path, captions: Path | None) -> list[Record]:
        """Image-text retrieval, R@1 and R@5 in both directions.

        Texts go through the bundle's text tower, or where it has none, the original model's.
        Runners are compared by image retrieval at 1, image by image.

        Raises:
            DataError: no or empty captions, or an image is missing.
            ConfigError: the model has no text side.
        """
        pairs = read_captions(root, captions, self.limit)
        encode = self._tower.embed if self._tower is not None else self.model.text_features
        if encode is None:
            raise ConfigError(f"{self.model.name} has no text side; retrieval needs one")
        texts = []
        with self.reporter.stage("captions", len(pairs.texts)) as advance:
            for start in range(0, len(pairs.texts), self.batch_size):
                part = pairs.texts[start : start + self.batch_size]
                texts.append(np.asarray(encode(part), np.float32))
                advance(len(part))
        stream = pairs.stream(self.preprocess)
        stream.decoders = self.decoders
        embedded = self._embed(stream)
        if len(embedded.keys) < len(pairs.images):
            raise DataError(f"{pairs.source}: {self.warnings[-1]}; the set must be whole")
        owner, text_features = np.array(pairs.image_of_text), np.concatenate(texts)
        records: list[Record] = []
        reference: Array | None = None
        for name, features in embedded.features.items():
            metrics, hits = retrieval_metrics(features, text_features, owner)
            found = hits["image_retrieval"]
            paired, line = None, None
            if reference is None:
                reference = found
            else:
                paired, line = compare_captions(reference, found, owner, self.seed)
            records.append(
                Record(pairs.source, RETRIEVAL, name, metrics, len(features), paired, line)
            )
        return records + fidelity_records(pairs.source, embedded)

    def _open(
        self, data: str, train: bool = False, classes: Sequence[str] = (), labels: bool = True
    ) -> ImageStream:
        limit = None if train else self.limit
        known = classes or self.labels
        with self.reporter.stage(f"opening {data}"):
            stream = open_data(data, self.preprocess, known, limit, self.seed, train, labels)
        stream.decoders = self.decoders
        return stream

    def _embed(self, stream: ImageStream) -> Embedded:
        embedded = embed(stream, self.runners, self.batch_size, self.reporter, self.crew)
        for line in stream.warnings():
            self._warn(line)
        return embedded

    def _warn(self, line: str) -> None:
        log.warning("%s", line)
        self.warnings.append(line)

    def _head(self, classes: tuple[str, ...]) -> tuple[Array, float] | None:
        """Head and logit scale for these classes, or None where no text side can make one."""
        if classes == self.labels:
            return self.bundle.text_features, self.bundle.logit_scale
        if self._tower is not None and self.templates == DEFAULT_TEMPLATES:
            count, scale = len(classes), self._tower.config.logit_scale
            title = "zero-shot head by the bundle's text tower"
            with self.reporter.stage(title, count) as advance:
                return make_head(self._tower, classes, advance=advance), scale
        if str(self.provenance.get("model", "")).startswith("timm/"):
            return None
        if self.model.text_head is None:
            return None
        log.info("classes of the data's own: a head for %d class names", len(classes))
        return self.model.text_head(classes, self.reporter).numpy(), self.model.logit_scale

    def _need(self, records: list[Record], data: str) -> list[Record]:
        if not records:
            raise ConfigError(
                f"{data} has no labels that this bundle can be judged by, and fidelity compares "
                "two: pass --on fp32,onnxruntime, or --task knn --train-data DIR"
            )
        return records

    def _probe(
        self, data: str, task: str, embedded: Embedded, stream: ImageStream, train: str | None
    ) -> list[Record]:
        if train is None:
            raise ConfigError(f"--task {task} needs --train-data: labelled images to learn from")
        if embedded.labels is None:
            raise DataError(f"{data} has no labels; --task {task} needs one folder per class")
        classes = stream.class_names
        known = self._open(train, train=True, classes=classes)
        if known.class_names != classes:
            raise DataError(f"{train} and {data} have different classes")
        _refuse_shared(data, train, stream, known)
        bank = self._embed(known)
        if bank.labels is None:
            raise DataError(f"{train} has no labels; --task {task} needs one folder per class")
        probe = knn_logits if task == KNN else linear_probe_logits
        logits = {
            name: probe(features, bank.features[name], bank.labels, len(classes))
            for name, features in embedded.features.items()
        }
        return classify(data, task, logits, embedded.labels, self.seed)


def _refuse_shared(data: str, train: str, judged: ImageStream, known: ImageStream) -> None:
    """Raise ConfigError where a probe would be judged by images that it learns from."""
    if data == DEMO or is_torchvision(Path(data)):  # which have splits
        return
    streams = [is_stream(Path(place)) for place in (data, train)]
    same = Path(data).resolve() == Path(train).resolve()
    if all(streams):
        same = shared_source(Path(data), Path(train)) is not None
    elif not same and not any(streams):
        files = [
            {
                os.path.realpath(item.source)
                for item in each.items()
                if isinstance(item.source, Path)
            }
            for each in (judged, known)
        ]
        same = bool(files[0] & files[1])
    if same:
        raise ConfigError(
            f"images of --data {data} are also in --train-data {train}: a probe would know the "
            "answers; pass other images to learn from"
        )
