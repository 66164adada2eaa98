"""Parts of the report page by themselves: labels, text, cards, listings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regcache_deploy.report.answer import file_card, speed_card
from regcache_deploy.report.bundle_plots import neighbours
from regcache_deploy.report.bundle_sections import cpp_snippet, how_to_run
from regcache_deploy.report.html import inline
from regcache_deploy.report.search_sections import provenance
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from tests.report.test_report_bundle import result
from tests.tiny_plans import tiny_plan


def test_points_that_lie_together_share_a_label():
    places = [(0, 0), (100, 0), (10, 0), (18, 0), (100, 9)]
    assert neighbours(places, 12) == [[0, 2, 3], [1, 4]]
    assert neighbours(places, 5) == [[0], [1], [2], [3], [4]]


def test_commands_and_intervals_in_the_text():
    found = str(inline("run `regcache bench B`: -1.0 [-2.0, 0.5] of [batch, 3]"))
    assert "<code>regcache bench B</code>" in found
    assert '<span class="whole">[-2.0, 0.5]</span>' in found
    assert "[batch, 3]" in found


def test_a_name_cannot_be_a_link_to_elsewhere():
    for place in ("javascript:alert`1`//.html", "//host/x.html", "https://host/x.html"):
        assert "<a" not in str(inline(f"[page]({place})"))
    assert '<a href="../a%20b/report.html">page</a>' in str(inline("[page](../a%20b/report.html)"))


def test_a_search_alone_names_no_file(tmp_path):
    search = result()
    del search["bundle"]
    assert file_card(search).answer == "none yet"
    assert "no file" in speed_card(search).detail
    assert "`regcache bench t.regcache`" in speed_card(result()).detail


def test_commands_on_the_page_can_be_typed():
    document = result(bundle='a "b"/t.regcache')
    assert "`regcache bench 'a \"b\"/t.regcache'`" in speed_card(document).detail
    assert "`regcache build 'a \"b\"/t.regcache'`" in file_card(document).detail
    listing = cpp_snippet(document["bundle"], head=False)
    assert "regcache_classify 'a \"b\"/t.regcache' cat.jpg" in listing
    assert 'regcache_model_open("a \\"b\\"/t.regcache"' in listing


def test_the_page_of_an_engine(tmp_path):
    """A decision on TensorRT, made up: what is deployed is the engine."""
    tried = [
        {"form": "int8", "keep": False, "reasons": ["it does not run: NaN"]},
        {"form": "float", "keep": True, "reasons": ["it loses nothing"]},
    ]
    decision: dict[str, Any] = {
        "kept": "float",
        "path": "f.regcache",
        "engine_file": "k.engine",
        "tried": tried,
    }
    decision |= {"float_body": "float16", "proven": True, "warning": ""}
    path = write_bundle(tiny_plan(), tmp_path / "t.regcache")
    document = result(decision=decision, bundle=str(path))
    card = file_card(document)
    assert (card.answer, card.mood) == ("float file (FP16)", "open")
    assert card.detail.startswith("k.engine: ")
    manifest = Bundle.open(path).manifest
    graph = manifest["graph"] | {"target": "tensorrt"}
    made = how_to_run(tmp_path, document | {"manifest": manifest | {"graph": graph}})
    assert made is not None
    assert "engine = TensorRTEngine('k.engine')" in made.code[0].text
    assert "load_engine" not in made.code[0].text
    compile(made.code[0].text, "page", "exec")


def test_what_is_run_is_what_was_decided(tmp_path):
    """The file that was kept, not the one that was refused."""
    path = write_bundle(tiny_plan(), tmp_path / "t.regcache")
    document = result(bundle=str(path), manifest=Bundle.open(path).manifest)
    for kept, place in (("int8", str(path)), ("mixed", "gone/t-mixed/t-mixed.regcache")):
        decision: dict[str, Any] = {"kept": kept, "path": place, "engine_file": None}
        made = how_to_run(tmp_path, document | {"decision": decision})
        assert made is not None
        assert f"regcache_engines.open({place!r})" in made.code[0].text
    moved = tmp_path / "t-mixed/t-mixed.regcache"
    moved.mkdir(parents=True)
    made = how_to_run(tmp_path, document | {"decision": decision})
    assert made is not None
    assert repr(str(moved)) in made.code[0].text


def test_settings_come_from_the_bundle_where_the_run_has_none():
    manifest = {"provenance": {"options": {"search_images": 64, "limit": None}}}
    made = provenance(Path("run"), result() | {"manifest": manifest})
    assert made is not None
    assert made.tables[0].rows == [["search-images", "64"]]
    assert provenance(Path("run"), result()) is None
