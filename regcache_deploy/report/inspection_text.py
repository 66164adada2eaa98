"""Facts of one bundle as lines of text, and of two side by side."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..work.format import (
    COUNTED,
    difference_text,
    mib_text,
    ms_text,
    p_text,
    percent,
    plain,
    value_text,
)
from .inspection import Facts

NARROWEST = 30
"""Columns that a value has even in the narrowest window."""

LONGEST = 40
"""Characters of a value beside another one."""

Rows = list[tuple[str, str]]


def lines_of(facts: Facts, width: int | None = None) -> list[str]:
    """A page of text: a name and its value, which goes on below where `width` columns end."""
    return _columns([(plain(name), plain(value)) for name, value in _rows(facts) if value], width)


def differences(one: Facts, other: Facts) -> list[dict[str, Any]]:
    """Facts that differ: `name` (with dots), `a`, `b`, in the order of `inspect_bundle`.

    Names of files and paths say nothing by themselves and are left out; hashes count.
    """
    first, second = dict(_flat(one)), dict(_flat(other))
    names = [name for name in {**first, **second} if name != "bundle"]
    return [
        {"name": name, "a": first.get(name), "b": second.get(name)}
        for name in names
        if first.get(name) != second.get(name)
    ]


def difference_lines(one: Facts, other: Facts, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The differences as a table, shares and sizes with their change."""
    title = ("", one["bundle"], other["bundle"], "change")
    if not found:
        return [f"{one['bundle']} and {other['bundle']} hold the same."]
    rows = [title]
    for row in found:
        rows.append((plain(row["name"]), *_short(row["a"], row["b"]), _change(row["a"], row["b"])))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows
    ]


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    model, quantizer, graph = facts["model"], facts["quantizer"], facts["graph"]
    weights = model["pretrained"] or "its own weights"
    yield "bundle", facts["bundle"]
    yield "model", f"{model['name']} ({weights})"
    yield "note", model["caution"] or ""
    yield "encoder", _encoder(facts["encoder"])
    linears = f"{quantizer['quantized_linears']} of {quantizer['linears']} linears"
    yield "quantizer", f"{quantizer['baseline']}, {quantizer['bits']}, {linears}"
    yield "recipe", _recipe(quantizer)
    yield "RegCache", _regcache(facts["regcache"])
    yield "sinks", _sinks(facts["sinks"])
    yield "merging", _merge(facts["merge"])
    yield "tokens by block", _tokens(facts["tokens_by_block"])
    yield "graph", _graph(graph)
    yield "input", _end(graph.get("input", {}))
    yield "output", _end(graph.get("output", {}))
    yield "preprocessing", ", ".join(f"{k} {v}" for k, v in facts["preprocess"].items())
    yield "zero-shot head", _head(facts["head"])
    yield "text tower", _text(facts["text"])
    yield "sizes", _sizes(facts["sizes"])
    yield from _accuracy(facts["accuracy"])
    yield from _speed(facts["speed"])
    yield "certificate", _certificate(facts["certificate"])
    yield from _made(facts["made"])
    for name, digest in facts["files"].items():
        yield f"SHA-256 {name}", digest


def _encoder(spec: Facts | None) -> str:
    if spec is None:
        return "not described (no certificate)"
    size, patch = ("x".join(map(str, spec[name])) for name in ("image_size", "patch_size"))
    parts = [
        f"{size} pixels",
        f"patches {patch}",
        *_stem(spec.get("stem")),
        f"{spec['tokens']} tokens ({spec['num_prefix_tokens']} special)",
        f"{spec['depth']} blocks of width {spec['width']}, {spec['heads']} heads",
        f"MLP {spec['mlp_width']} {spec['activation']}",
        f"pool {spec['pool']}",
        f"embedding {spec['output_dim']}",
    ]
    return ", ".join([*parts, *(["rotary"] if spec["rotary"] else [])])


def _stem(stem: Facts | None) -> list[str]:
    if not stem:
        return []
    share = stem["float_multiplications"]
    return [f"convolutional stem in float ({share:.0%} of its and the blocks' multiplications)"]


def _recipe(quantizer: Facts) -> str:
    treatment = quantizer["treatment"] or {}
    nothing: tuple[Any, ...] = (None, False, 0, "", [], {})
    told = [f"{k} {v}" for k, v in treatment.items() if k != "alphas" and v not in nothing]
    rule = quantizer["range_rule"]
    return ", ".join(filter(None, [quantizer["recipe"], rule and f"ranges by {rule}", *told]))


def _regcache(choice: Facts | None) -> str:
    if not choice:
        return "none"
    scope = "only" if choice.get("prefix_scope") == "only" else "on"
    return (
        f"{choice['prefix_count']} cached keys and values from block {choice['prefix_block']} "
        f"{scope}, {choice['delete_count']} tokens deleted at block {choice['delete_block']} "
        f"({choice['delete_at']})"
    )


def _sinks(sinks: Facts | None) -> str:
    if not sinks:
        return ""
    text = (
        f"{sinks['absent_while_ranges_are_set']} absent while ranges are set, "
        f"{sinks['saturate']} of them saturate"
    )
    norms = sinks["token_norms"]
    if norms:
        text += f"; largest token norm at {norms['layer']} {norms['before']['largest']:.2f}"
        text += f" -> {norms['after']['largest']:.2f}" if norms["after"] else ""
    return text


def _merge(merge: Facts | None) -> str:
    if not merge:
        return ""
    return f"{sum(merge['counts'])} patches by {merge['metric']}: {_listed(merge['counts'])}"


def _tokens(blocks: Sequence[Facts] | None) -> str:
    if not blocks:
        return ""
    return _listed([block["attention"] for block in blocks]) + f" -> {blocks[-1]['mlp']}"


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _graph(graph: Facts) -> str:
    probes = len(graph.get("probes") or ())
    left_out = graph.get("without")
    parts = [f"target {graph.get('target')}", f"opset {graph.get('opset')}"]
    parts += [f"{probes} probes"] if probes else []
    return ", ".join(parts + ([f"without {', '.join(left_out)}"] if left_out else []))


def _end(end: Facts) -> str:
    shape = ", ".join(map(str, end.get("shape", ())))
    note = "" if end.get("l2_normalized") is None else ", not L2-normalized"
    return f"{end.get('name')} {end.get('dtype')} [{shape}]{note}"


def _head(head: Facts | None) -> str:
    if head is None:
        return "none"
    return f"{head['classes']} classes, logit scale {head['logit_scale']:.4g}"


def _text(text: Facts | None) -> str:
    if text is None:
        return "none"
    if "left_out" in text:
        return f"none: {text['left_out']}"
    cosine = text["cosine"]
    case = ", lower case" if text["lower_case"] else ""
    return (
        f"{text['precision']}, {text['context_length']} tokens, {text['templates']} templates"
        f"{case}, cosine {cosine['mean']:.5f} (lowest {cosine['lowest']:.5f}, "
        f"{cosine['texts']:.0f} texts)"
    )


def _sizes(sizes: Facts) -> str:
    parts = [f"model {mib_text(sizes['model'])}"]
    if sizes["model_in_float32"]:
        parts.append(f"in float32 {mib_text(sizes['model_in_float32'])}")
    if sizes["text"]:
        parts.append(f"text {mib_text(sizes['text'])}")
    return ", ".join([*parts, f"all files {mib_text(sizes['whole'])}"])


def _accuracy(accuracy: Facts | None) -> Iterator[tuple[str, str]]:
    if not accuracy:
        return
    metric = accuracy["metric"]
    images = f" on {accuracy['images']} images" if accuracy["images"] else ""
    scores = ", ".join(f"{k} {_score(metric, v)}" for k, v in accuracy["scores"].items())
    yield "accuracy", f"{metric or 'score'}{images}: {scores}"
    pair = accuracy["paired"]
    if pair:
        unit, test = (" points", "McNemar p") if metric in COUNTED else ("", "p")
        yield (
            "against FP32",
            f"{difference_text(metric or '', pair)}{unit}, {test} {p_text(pair)}",
        )
    agreement = accuracy["deployed_against_simulated"]
    if agreement:
        same = agreement.get("top1")
        share = "" if same is None else f"top-1 identical on {percent(same)}, "
        yield (
            "deployed against simulated",
            f"{share}mean cosine {agreement['mean_cosine']:.6f} "
            f"(lowest {agreement['min_cosine']:.6f})",
        )


def _score(metric: str | None, value: float) -> str:
    return value_text(metric or "", value)


def _speed(speed: Facts | None) -> Iterator[tuple[str, str]]:
    if not speed:
        return
    look = speed["over_fp32"]
    if look:
        yield (
            "speed over FP32",
            f"{look['value']:.2f} [{look['low']:.2f}, {look['high']:.2f}] in {look['engine']}, "
            f"batch {look['batch']}, threads {look['threads']}, {look['cpu']}",
        )
    for row in speed["rows"] or ():
        if row.get("reason"):  # did not run here
            continue
        yield f"speed, {row['engine']} {row['precision']}", _latency(row)


def _latency(row: Mapping[str, Any]) -> str:
    """One row of `regcache bench`, whose cells are text."""
    parts = [f"batch {row['infer_batch_size']}", f"threads {row['threads']}"]
    parts.append(f"{ms_text(float(row['infer_step_time']))} ms")
    parts.append(f"{float(row['infer_samples_per_sec']):.1f} images/s")
    return ", ".join(parts)


def _certificate(found: Facts | None) -> str:
    if not found:
        return "none: nobody can verify this bundle"
    return (
        f"{found['images']} images, {found['nodes']} nodes, {found['different_codes']} of "
        f"{found['codes']} codes different; simulated by {found['simulation']}"
    )


def _made(made: Facts) -> Iterator[tuple[str, str]]:
    versions = ", ".join(f"{k} {v}" for k, v in (made["versions"] or {}).items())
    yield "made", ", ".join(filter(None, [made["created"], f"version {made['tool_version']}"]))
    yield "made with", versions
    yield "searched on", made["search_data"] or ""


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by name; lists of numbers stay whole."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{index}")
    elif value is not None:
        yield name, value


def _short(one: Any, other: Any) -> tuple[str, str]:
    """Both as text of at most `LONGEST` characters, cut so that one sees where they differ."""
    texts = _told(one), _told(other)
    differ = (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    same = next(differ, min(map(len, texts)))
    start = same - 10 if max(map(len, texts)) > LONGEST and same > LONGEST - 13 else 0
    first, second = (("..." if start else "") + text[start:] for text in texts)
    return _cut(first), _cut(second)


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else plain(str(value)).replace("\n", "\\n")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _change(one: Any, other: Any) -> str:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (one, other))
    if not numbers:
        return ""
    change = f"{other - one:+.6g}"
    return f"{change} ({other / one - 1:+.1%})" if one else change


def _columns(rows: Rows, width: int | None) -> list[str]:
    names = max(len(name) for name, _ in rows) + 2
    room = sys.maxsize if width is None else max(width - names, NARROWEST)
    lines = []
    for name, value in rows:
        first, *rest = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)
        lines += [name.ljust(names) + first, *(" " * names + line for line in rest)]
    return lines
