"""What is fuzzed in Python: every parser of bytes that come from outside.

A target takes bytes; whatever they are, nothing but a RegCacheError may come out, in time and
without much memory. `make fuzz-python` mutates the seeds under coverage (atheris);
`test_fuzz_targets.py` tries the seeds and simple damages of them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from regcache_deploy.cli.common import Parser
from regcache_deploy.cli.config_file import read_config
from regcache_deploy.cli.export import add_arguments
from regcache_deploy.data import captions, shards
from regcache_deploy.encoders.encoder_file import read_encoder
from regcache_deploy.encoders.settings import ModelSettings
from regcache_deploy.encoders.zero_shot_head import read_templates
from regcache_deploy.errors import RegCacheError
from regcache_engines.bundle import MANIFEST, PREPROCESS, Bundle
from regcache_engines.files import sha256_bytes
from regcache_engines.head import read_head
from regcache_engines.onnx_wire import has_external_data
from regcache_engines.preprocess import Preprocess
from regcache_engines.preprocess_config import output_size, preprocess_problem
from regcache_engines.tensorrt.sidecar import Sidecar
from regcache_engines.text_config import TextConfig
from regcache_engines.text_head import read_classes, read_prompts
from regcache_export.bundle_graph import graph_options
from regcache_export.certificate_files import CERTIFICATE, read_certificate
from regcache_export.merge import MergeSchedule
from regcache_export.plan import Plan
from regcache_export.spec import EncoderSpec
from tests.attacks.kit import Kit

Parse = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        parse: of bytes; raises RegCacheError or nothing.
        seeds: whole things.
    """

    parse: Parse
    seeds: tuple[bytes, ...]


def targets(kit: Kit, scratch: Path) -> dict[str, Target]:
    """All of them, with seeds from whole things; `scratch` is a folder for files."""
    run = Path(shutil.copytree(kit.run, scratch / "run"))
    bundle = run / "tiny.regcache"
    files = {path.name: path.read_bytes() for path in bundle.iterdir()}
    plan, tensors = (run / "plan.json").read_bytes(), (run / "plan.safetensors").read_bytes()
    spec = json.dumps(json.loads(plan)["encoder"]).encode()
    rows = {"images": [{"id": 1, "file_name": "a.jpg"}]}
    rows |= {"annotations": [{"image_id": 1, "caption": "a cat"}]}
    parser = Parser(prog="x")
    add_arguments(parser)

    def file(name: str, read: Callable[[Path], object]) -> Parse:
        path = scratch / name

        def parse(data: bytes) -> None:
            path.write_bytes(data)
            read(path)

        return parse

    def plan_json(data: bytes) -> None:
        (run / "plan.safetensors").write_bytes(tensors)
        (run / "plan.json").write_bytes(data)
        Plan.load(run)

    def plan_tensors(data: bytes) -> None:
        document = json.loads(plan) | {"tensors_sha256": sha256_bytes(data)}
        (run / "plan.safetensors").write_bytes(data)
        (run / "plan.json").write_text(json.dumps(document))
        Plan.load(run)

    def manifest(data: bytes) -> None:
        (bundle / MANIFEST).write_bytes(data)
        graph_options(Bundle.open(bundle))

    def certificate(data: bytes) -> None:
        (bundle / CERTIFICATE).write_bytes(data)
        known = json.loads(files[MANIFEST])
        known["files"][CERTIFICATE] = {"sha256": sha256_bytes(data), "size": len(data)}
        (bundle / MANIFEST).write_text(json.dumps(known))
        read_certificate(Bundle.open(bundle))

    def preprocessing(data: bytes) -> None:
        with suppress(ValueError, RecursionError):
            config = json.loads(data)
            usable = isinstance(config, dict) and preprocess_problem(config) is None
            if usable and max(output_size(config)) < 1000:
                Preprocess(config)

    def encoder_spec(data: bytes) -> None:
        with suppress(ValueError, RecursionError):
            document = json.loads(data)
            if isinstance(document, dict):
                EncoderSpec.from_json(document)

    def words(data: bytes) -> None:
        text = data.decode(errors="replace")
        for parse in (MergeSchedule.parse, shards.expand):
            with suppress(RegCacheError):
                # else no command line, no file name
                if "\0" not in text and len(text.encode()) < 200:
                    parse(text)
        ModelSettings(img_size=text)

    listing = scratch / "shards"
    listing.mkdir()
    return {
        "plan": Target(plan_json, (plan,)),
        "plan-tensors": Target(plan_tensors, (tensors,)),
        "manifest": Target(manifest, (files[MANIFEST],)),
        "certificate": Target(certificate, (files[CERTIFICATE],)),
        "preprocess": Target(preprocessing, (files[PREPROCESS],)),
        "head": Target(
            lambda data: ignore(read_head(data, scratch)), (files["text_features.safetensors"],)
        ),
        "classes": Target(
            file("shards/classnames.txt", lambda path: shards.read_classes(str(listing))),
            (b"cat\ndog\n",),
        ),
        "templates": Target(
            file("templates", lambda path: read_templates(str(path))), (b"a {}.\na {c}\n",)
        ),
        "prompts": Target(file("prompts", lambda path: read_prompts(str(path))), (b"a {}.\n",)),
        "names": Target(file("names.txt", lambda path: read_classes(str(path))), (b"cat\ndog\n",)),
        "text": Target(lambda data: ignore(TextConfig.parse(data, "text.json")), (TEXT,)),
        "captions": Target(
            file("captions.json", lambda path: captions.read_captions(scratch, path)),
            (json.dumps(rows).encode(),),
        ),
        "yaml": Target(
            file("x.yaml", lambda path: read_config(path, parser)),
            (b"limit: 3\nmodel: ViT-B-32\njson: true\n",),
        ),
        "encoder": Target(file("e.safetensors", read_encoder), (kit.encoder.read_bytes(),)),
        "spec": Target(encoder_spec, (spec,)),
        "sidecar": Target(file("k.json", Sidecar.read), (b'{"schema": 1, "profile": {}}',)),
        "onnx": Target(lambda data: ignore(has_external_data(data)), (files["model.onnx"],)),
        "words": Target(words, (b"(3,1.5)", b"x-{000..012}.tar", b"224x160", b"1,2,3")),
    }


TEXT = json.dumps(
    {"format": 1, "context_length": 77, "logit_scale": 100.0, "templates": ["a {}"], "dim": 20}
).encode()


def ignore(value: object) -> None:
    """For functions whose result nobody needs."""


def attempt(target: Target, data: bytes) -> None:
    """The bytes, and nothing but a RegCacheError."""
    with suppress(RegCacheError):
        target.parse(data)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """In memory, where the system has such a place: a fuzzer writes a thousand files a second."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=place)
