"""The sections of a bundle: error by layer, the graph's contract, how to run it, certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regcache_engines.documents import parse_json

from ..work.format import count_text, mib_text, percent
from ..work.invocation import typed
from .bundle_plots import layer_errors
from .drawing import draw_svg
from .parts import Code, Section, Table, svg_picture

CERTIFICATE = "certificate.json"


def errors(folder: Path, document: dict[str, Any]) -> Section | None:
    """Which layer costs what, and how the error grows, simulated and deployed."""
    found = document.get("block_errors")
    if not found:
        return None
    worst = sorted(found["alone"].items(), key=lambda item: -item[1])[:8]
    rows = [[name, f"{value:.2e}"] for name, value in worst]
    last = {
        title: found[key][-1]
        for key, title in (("simulated", "simulated"), ("deployed", "deployed"))
        if key in found
    }
    text = [
        f"On {found['images']} calibration images from the bundle. The reference is the float "
        "encoder with the same RegCache, so that only quantization counts.",
        "Relative error behind the last block: "
        + ", ".join(f"{title} {value:.4f}" for title, value in last.items())
        + ". Where the two curves lie on each other, the graph does what was simulated.",
    ]
    picture = svg_picture(
        draw_svg(lambda: layer_errors(found)),
        "Cost of each linear by itself, and the error behind each block.",
        "Above: one minus the cosine of the features with one linear quantized. Below: relative "
        "error of what pooling reads, behind each block, with all of them quantized.",
    )
    table = Table(["linear", "1 - cosine"], rows, "The linears that cost most by themselves")
    return Section("errors", "Error by layer", text, [table], [picture])


def contract(folder: Path, document: dict[str, Any]) -> Section | None:
    """What goes into the graph and what comes out."""
    manifest = document.get("manifest")
    if not manifest:
        return None
    graph, preprocess = manifest["graph"], document["preprocess"]
    kind = {"float32": "normalized float32", "uint8": "raw uint8 pixels"}[graph["input"]["dtype"]]
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    rows = [
        ["input", f"{graph['input']['name']} {_shape(graph['input'])}, {kind}"],
        ["output", f"{graph['output']['name']} {_shape(graph['output'])}, not L2-normalized"],
        ["target", f"{graph['target']}, opset {graph['opset']}"],
        ["quantized", f"{manifest['quantized_linears']} of {manifest['linears']} linears, "
         f"{manifest['bits']}"],
        ["tokens", f"{graph['tokens']} in, {graph['tokens_out']} behind the last block"],
    ]  # fmt: skip
    steps = [[key, _words(value)] for key, value in preprocess.items()]
    files = [[name, mib_text(size)] for name, size in sorted(sizes.items())]
    tables = [
        Table(["", ""], rows),
        Table(["", ""], steps, "Preprocessing: open_clip's names, preprocess_cfg.json"),
        Table(["", ""], files, "Files of the bundle"),
    ]
    return Section("contract", "Graph contract", tables=tables)


def how_to_run(folder: Path, document: dict[str, Any]) -> Section | None:
    """Python, C++ and Triton."""
    manifest, bundle = document.get("manifest"), document.get("bundle")
    if not manifest or not bundle:
        return None
    head = "text_features.safetensors" in manifest["files"]
    engine, decision = None, document.get("decision") or {}
    if decision and decision["kept"] != "int8":  # what is deployed is another bundle
        bundle = str(_kept_beside(folder, Path(decision["path"])))
    if manifest["graph"]["target"] == "tensorrt":
        engine = decision.get("engine_file") or "engines/KEY.engine"
    host_code = bool(decision.get("engine_host_code"))
    listings = [
        Code("Python", python_snippet(bundle, head, engine, host_code)),
        Code("C++ (docs/cpp.md)", cpp_snippet(bundle, head)),
        Code("Triton", triton_snippet(bundle, manifest)),
    ]
    return Section("run", "How to run it", code=listings)


def _kept_beside(folder: Path, kept: Path) -> Path:
    """The bundle that `regcache build` wrote; in a run that was moved since, the one there."""
    moved = folder / kept.parent.name / kept.name
    return moved if moved.exists() and not kept.exists() else kept


def python_snippet(
    bundle: str,
    head: bool,
    engine: str | None = None,
    host_code: bool = False,
) -> str:
    """A program that runs where `pip install 'regcache-deploy[cpu]'`, or the engine's extra, was.

    Args:
        bundle: path.
        head: the bundle has a zero-shot head.
        engine: of TensorRT, in place of ONNX Runtime.
        host_code: the engine was built version-compatible.
    """
    lines = ["import sys", "import regcache_engines"]
    opened = f"regcache_engines.open({bundle!r})"
    if engine:
        options = ", host_code=True" if host_code else ""
        lines += [
            "from regcache_engines.tensorrt.engine import TensorRTEngine",
            "",
            f"bundle = regcache_engines.Bundle.open({bundle!r})",
            f"engine = TensorRTEngine({engine!r}{options})",
        ]
        opened = "regcache_engines.Clip(bundle, engine)"
    else:
        lines.append("")
    lines.append(f"with {opened} as clip:")
    if head:
        lines += [
            "    for found in clip.classify(sys.argv[1:], top=1):",
            "        print(found[0].label, found[0].score)",
        ]
    else:
        lines.append("    print(clip.embed_images(sys.argv[1:]).shape)")
    return "\n".join(lines)


def cpp_snippet(bundle: str, head: bool) -> str:
    """The ready program, and the calls in one's own."""
    quoted = json.dumps(bundle, ensure_ascii=False)  # the escapes of JSON are C++'s
    classify = [
        "regcache_prediction best;",
        "regcache_classify(context, features.data(), 1, 1, &best);",
        "std::puts(regcache_model_label(model, best.index));",
    ]
    lines = [
        "// make cpp",
        f"// {typed('build/cpp/regcache_classify', bundle, 'cat.jpg')}",
        "regcache_model *model = nullptr;",
        "regcache_context *context = nullptr;",
        f"if (regcache_model_open({quoted}, nullptr, &model) != REGCACHE_OK ||",
        "    regcache_context_create(model, &context) != REGCACHE_OK)",
        '    return std::fprintf(stderr, "%s\\n", regcache_last_error()), 1;',
        "std::vector<uint8_t> pixels(regcache_model_pixels_size(model));",
        "std::vector<float> features(regcache_model_output_dim(model));",
        'regcache_preprocess_file(context, "cat.jpg", pixels.data());',
        "regcache_embed(context, pixels.data(), 1, features.data());",
        *(classify if head else []),
        "regcache_context_free(context);",
        "regcache_model_free(model);",
    ]
    return "\n".join(lines)


def triton_snippet(bundle: str, manifest: dict[str, Any]) -> str:
    graph = manifest["graph"]
    return "\n".join(
        [
            "regcache report RUN --triton model_repository    # --engine KEY.engine: on a GPU",
            "docker run --rm -p 8000:8000 -v $PWD/model_repository:/models \\",
            "    nvcr.io/nvidia/tritonserver:<release>-py3 tritonserver --model-repository=/models",
            f"# input {graph['input']['name']}, output {graph['output']['name']}; preprocess as "
            "preprocess_cfg.json says",
        ]
    )


def certificate(folder: Path, document: dict[str, Any]) -> Section | None:
    """What was compared code by code."""
    found = document.get("certificate")
    if not found:
        return None
    nodes = found["nodes"]
    integer = found["code_sha256"].keys() - found.get("without_codes", {}).keys()
    coded = [n for n in nodes if n["node"] in integer]
    elements, different = sum(n["elements"] for n in coded), sum(n["different"] for n in coded)
    off = sum(n["off_tie"] for n in coded)
    floats = [n["error"] for n in nodes if n not in coded]
    run = found["optimized"]
    rows = [
        ["images", str(found["images"])],
        ["integer codes compared", count_text(elements)],
        ["that differ, by a rounding tie", count_text(different - off)],
        ["that differ otherwise", count_text(off)],
        ["largest error of a block's output, relative", f"{max(floats, default=0):.1e}"],
        ["with optimizations on, mean cosine", f"{run['mean_cosine']:.6f}"],
        *([["with optimizations on, same class", percent(run["top1"])]] if run["top1"] else []),
        ["simulation", found["simulation"]],
        ["runtime", f"onnxruntime {found['environment']['onnxruntime']}"],
    ]
    text = ["Made at the export; regcache verify BUNDLE recomputes it anywhere, without torch."]
    return Section("certificate", "Certificate", text, [Table(["", ""], rows)])


def read_bundle(path: Path) -> dict[str, Any]:
    """What the sections need of a bundle: manifest, preprocessing and certificate.

    Raises:
        BundleError: it is damaged.
    """
    from regcache_engines.bundle import Bundle

    bundle = Bundle.open(path)
    found: dict[str, Any] = {
        "bundle": str(path),
        "manifest": bundle.manifest,
        "preprocess": bundle.preprocess,
    }
    if CERTIFICATE in bundle.manifest["files"]:
        found["certificate"] = parse_json(bundle.read(CERTIFICATE).decode())
    return found


def _shape(tensor: dict[str, Any]) -> str:
    return f"[{', '.join(str(size) for size in tensor['shape'])}]"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
