"""Image files as text-to-image programs write them in, the prompts inside them out."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.pictures.embedded import PROGRAMS, embedded
from pipeline.pictures.lists import HEAD_BYTES, list_captions
from pipeline.pictures.sources import ImportSource
from tests.conftest import ROOT
from tests.test_pixels import NOISE_PNG, encoded

PICTURE = Image.new("RGB", (4, 4), (9, 8, 7))
BLOCK = "{}\nNegative prompt: blurry\nsecond line\nSteps: 20, Sampler: Euler a, CFG scale: 7"


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    return encoded(PICTURE, "PNG", pnginfo=info)


def exif(tag: int, value: Any, kind: str = "JPEG") -> bytes:
    found = Image.Exif()
    if tag == 0x9286:
        found.get_ifd(0x8769)[tag] = value
    else:
        found[tag] = value
    return encoded(PICTURE, kind, exif=found.tobytes())


def commented(text: str, kind: str = "JPEG", order: str = "be") -> bytes:
    return exif(0x9286, b"UNICODE\0" + text.encode(f"utf-16-{order}"), kind)


def ascii_comment(text: str) -> bytes:
    return exif(0x9286, b"ASCII\0\0\0" + text.encode())


def hidden(text: str, packed: bool) -> bytes:
    data = gzip.compress(text.encode(), mtime=0) if packed else text.encode()
    mark = b"stealth_pngcomp" if packed else b"stealth_pnginfo"
    bits = np.unpackbits(np.frombuffer(mark + struct.pack(">I", 8 * len(data)) + data, np.uint8))
    side = int(np.ceil(np.sqrt(len(bits)))) + 1
    alpha = np.full(side * side, 254, np.uint8)
    alpha[: len(bits)] |= bits
    rgba = np.dstack([np.full((side, side, 3), 90, np.uint8), alpha.reshape(side, side).T])
    return encoded(Image.fromarray(rgba), "PNG")


def graph(**nodes: Any) -> str:
    """A ComfyUI graph: `KIND__3={...}` is node 3."""
    found = {}
    for name, inputs in nodes.items():
        kind, _, number = name.rpartition("__")
        found[number] = {"class_type": kind, "inputs": inputs}
    return json.dumps(found)


def sampled(text: str) -> str:
    return graph(
        KSampler__1={"positive": ["2", 0], "negative": ["3", 0]},
        CLIPTextEncode__2={"text": text}, CLIPTextEncode__3={"text": "blurry"},
    )  # fmt: skip


JOB = "Job ID: 00000000-1111-2222-3333-444444444444"
FILES: dict[str, list[Callable[[str], bytes]]] = {
    "SwarmUI": [
        lambda t: png(parameters=json.dumps({"sui_image_params": {"prompt": t, "seed": 7}})),
        lambda t: commented(json.dumps({"sui_image_params": {"prompt": t}}, indent=2)),
    ],
    "Fooocus": [
        lambda t: png(parameters=json.dumps({"prompt": t}), fooocus_scheme="fooocus"),
        lambda t: commented(json.dumps({"prompt": t, "base_model": "x", "seed": 1})),
        lambda t: png(parameters=json.dumps({"Prompt": t, "Negative": "x", "steps": 3})),
    ],
    "InvokeAI": [
        lambda t: png(invokeai_metadata=json.dumps({"positive_prompt": t, "negative_prompt": "x"})),
        lambda t: png(**{"sd-metadata": json.dumps({"image": {"prompt": [{"prompt": t}]}})}),
        lambda t: png(Dream=f'"{t}" -s 50 -S 1234 -W 512'),
    ],
    "NovelAI": [
        lambda t: png(Title="AI generated image", Description=t, Software="NovelAI",
                      Comment=json.dumps({"prompt": t, "seed": 1, "uc": "x"})),
        lambda t: hidden(json.dumps({"Description": t, "Software": "NovelAI"}), True),
        lambda t: hidden(json.dumps({"Description": t, "Software": "NovelAI"}), False),
    ],
    "AUTOMATIC1111": [
        lambda t: png(parameters=BLOCK.format(t)),
        lambda t: png(parameters=t),
        lambda t: commented(BLOCK.format(t)),
        lambda t: commented(BLOCK.format(t), order="le"),
        lambda t: commented(BLOCK.format(t), "WEBP"),
        lambda t: ascii_comment(BLOCK.format(t)),
        lambda t: exif(0x9286, BLOCK.format(t).encode()),
        lambda t: exif(0x010E, BLOCK.format(t).encode(), "WEBP"),
        lambda t: hidden(BLOCK.format(t), True),
        lambda t: encoded(PICTURE, "JPEG", comment=BLOCK.format(t).encode()),
    ],
    "EasyDiffusion": [
        lambda t: png(prompt=t, seed="1", negative_prompt="x"),
        lambda t: png(Prompt=t, Seed="1"),
    ],
    "Midjourney": [
        lambda t: png(Description=f"{t} --ar 16:9 --v 5.2 --style raw {JOB}", Author="x"),
        lambda t: png(Description=f"{t} --v 6 --no text, people"),
        lambda t: exif(0x010E, f"{t} {JOB}".encode()),
    ],
    "mflux": [lambda t: ascii_comment(json.dumps({"mflux_version": "1", "prompt": t}))],
    "Draw Things": [lambda t: commented(json.dumps({"c": t, "uc": "x", "seed": 3}))],
    "ComfyUI": [
        lambda t: png(prompt=sampled(t), workflow="{}"),
        lambda t: exif(0x0110, f"prompt:{sampled(t)}", "WEBP"),
    ],
}  # fmt: skip
"""Of each program, how it writes a prompt into a file."""
PROMPTS = [
    "a red house", "ein Haus\u2026 im Wald", "a dog\nand a cat", "stairs\nSteps: carved, moss",
    'a sign that says {"no": 1}', "(masterpiece:1.2), a boat",
]  # fmt: skip
ONE_LINE = ("Midjourney", "InvokeAI")


@pytest.mark.parametrize("program", FILES)
def test_prompts_of_every_program_are_read(program: str) -> None:
    for number, write in enumerate(FILES[program]):
        for text in PROMPTS:
            if "\n" not in text or program not in ONE_LINE:
                assert embedded(write(text))[:3] == (text, None, program), number


def test_every_program_is_in_the_readme_and_has_files_here() -> None:
    readme = (ROOT / "pipeline/pictures/README.md").read_text()
    table = readme[readme.index("| program |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table] == list(PROGRAMS) == list(FILES)


GRAPHS = {
    "control net": graph(
        KSampler__1={"positive": ["2", 0], "negative": ["2", 1]},
        ControlNetApplyAdvanced__2={"positive": ["3", 0], "negative": ["4", 0], "strength": 1.0},
        CLIPTextEncode__3={"text": "a boat"}, CLIPTextEncode__4={"text": "blurry"},
    ),
    "a guider": graph(
        SamplerCustomAdvanced__1={"guider": ["2", 0], "sigmas": ["9", 0]},
        BasicGuider__2={"conditioning": ["3", 0]},
        FluxGuidance__3={"conditioning": ["4", 0], "guidance": 3.5},
        CLIPTextEncodeFlux__4={"clip_l": "a boat", "t5xxl": "a boat", "guidance": 3.5},
    ),
    "a guider of two": graph(
        SamplerCustomAdvanced__1={"guider": ["2", 0]},
        CFGGuider__2={"positive": ["3", 0], "negative": ["4", 0]},
        CLIPTextEncode__3={"text": "a boat"}, ConditioningZeroOut__4={"conditioning": ["3", 0]},
    ),
    "strings": graph(
        KSampler__1={"positive": ["2", 0], "negative": ["3", 0]},
        CLIPTextEncode__2={"text": ["5", 0]}, CLIPTextEncode__3={"text": "blurry"},
        StringConcatenate__5={"string_a": ["6", 0], "string_b": "boat", "delimiter": " "},
        PrimitiveString__6={"value": "a"},
    ),
    "base and refiner": graph(
        KSamplerAdvanced__1={"positive": ["2", 0], "negative": ["3", 0]},
        KSamplerAdvanced__4={"positive": ["5", 0], "negative": ["3", 0]},
        CLIPTextEncodeSDXL__2={"text_g": "a boat", "text_l": "a boat"},
        CLIPTextEncodeSDXLRefiner__5={"text": "a boat", "ascore": 6.0},
        CLIPTextEncode__3={"text": "blurry"},
    ),
    "a reroute, combined": graph(
        KSampler__1={"positive": ["2", 0], "negative": ["7", 0]},
        ConditioningCombine__2={"conditioning_1": ["3", 0], "conditioning_2": ["4", 0]},
        Reroute__3={"": ["5", 0]}, ConditioningSetArea__4={"conditioning": ["5", 0]},
        CLIPTextEncode__5={"text": "a boat"}, CLIPTextEncode__7={"text": "blurry"},
    ),
    "an empty half": graph(
        KSampler__1={"positive": ["2", 0]},
        CLIPTextEncodeSDXL__2={"text_g": "a boat", "text_l": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_links_are_followed_from_the_sampler_to_its_text(name: str) -> None:
    assert embedded(png(prompt=GRAPHS[name])).text == "a boat"


UNCLEAR = {
    "2 texts in a graph": [
        graph(
            KSampler__1={"positive": ["2", 0]}, KSampler__3={"positive": ["4", 0]},
            CLIPTextEncode__2={"text": "a boat"}, CLIPTextEncode__4={"text": "a house"},
        ),
        graph(
            KSampler__1={"positive": ["2", 0]},
            CLIPTextEncodeFlux__2={"clip_l": "a boat", "t5xxl": "a boat on a lake"},
        ),
    ],
    "made by nodes that are not known": [
        graph(
            KSampler__1={"positive": ["2", 0]}, CLIPTextEncode__2={"text": ["3", 0]},
            LoadTextOfSomebody__3={"file": "a.txt"},
        ),
        graph(
            KSampler__1={"positive": ["2", 0]}, CLIPTextEncode__2={"text": ["3", 0]},
            PrimitiveString__3={"value": ["4", 0]}, PrimitiveString__4={"value": ["3", 0]},
        ),
    ],
    "comes from IPAdapter": [
        graph(KSampler__1={"positive": ["2", 0]}, IPAdapter__2={"image": ["9", 0]}),
    ],
    "without a sampler": [graph(CLIPTextEncode__2={"text": "a boat"}), "{}"],
    "no texts in a graph": [
        graph(KSampler__1={"positive": ["2", 0]}, Reroute__2={"": ["3", 0]},
              Reroute__3={"": ["2", 0]}),
        graph(KSampler__1={"positive": ["2", 0]}, CLIPTextEncode__2={"text": " "}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("why", UNCLEAR)
def test_a_graph_without_one_clear_text_says_why(why: str) -> None:
    for nodes in UNCLEAR[why]:
        found = embedded(png(prompt=nodes))
        assert found.text is None and why in str(found.problem)


@pytest.mark.parametrize(
    "data",
    [
        png(parameters=json.dumps({"unknown": {"prompt": "a boat"}, "seed": 1})),
        png(parameters=json.dumps([1, 2])),
        png(prompt=json.dumps({"prompt": "a boat", "seed": 1})),
        png(parameters=json.dumps({"sui_image_params": {"prompt": '{"a": 1}'}})),
        commented(json.dumps({"prompt": "a boat", "somebody": 1})),
        png(invokeai_metadata=json.dumps({"app_version": "3"})),
        png(workflow=json.dumps({"nodes": []})),
    ],
)
def test_json_is_never_a_prompt(data: bytes) -> None:
    found = embedded(data)
    assert found.text is None and found.problem is not None


def test_tags_and_flags_go_unless_they_are_asked_for() -> None:
    lora = png(parameters=BLOCK.format("a boat <lora:detail:0.8>, <hypernet:x:1>sea"))
    assert embedded(lora).text == "a boat , sea"
    assert embedded(lora, ()).text == "a boat <lora:detail:0.8>, <hypernet:x:1>sea"
    mark = png(Description="a boat -- at sea --ar 3:2 --v 6")
    assert embedded(mark).text == "a boat -- at sea"
    assert embedded(mark, ["lora"]).text == "a boat -- at sea --ar 3:2 --v 6"


def test_files_without_a_prompt_say_nothing() -> None:
    plain = [encoded(PICTURE, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    painted = png(Comment="made by a person", Software="GIMP", Description="a boat")
    for data in (b"", b"\x89PNG\r\n", NOISE_PNG, *plain, painted, exif(0x0110, "EOS 5D")):
        assert embedded(data)[:3] == (None, None, "")
    assert embedded(png(parameters="\nSteps: 20")).text is None


def test_the_head_is_enough_where_texts_come_first() -> None:
    assert embedded(png(parameters="a house")[:80]).text == "a house"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_and_lies_never_raise(data: st.DataObject) -> None:
    program = data.draw(st.sampled_from(sorted(FILES)))
    whole = bytearray(data.draw(st.sampled_from(FILES[program]))("a red house"))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for broken in (bytes(whole), bytes(whole[:cut])):
        found = embedded(broken)
        assert found.text is None or isinstance(found.text, str)


KEYS = ["1", "2", "inputs", "class_type", "prompt", "image", "text", "positive", "c", "uc",
        "sui_image_params", "base_model"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
CHUNKS = st.sampled_from(["parameters", "prompt", "invokeai_metadata", "sd-metadata", "Comment"])


@settings(max_examples=300, deadline=None)
@given(JSON, CHUNKS)
def test_any_json_is_read_or_refused(value: Any, name: str) -> None:
    text = embedded(png(**{name: json.dumps(value)})).text
    if text is not None and re.match(r"\s*[{\[]", text):
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


def test_bombs_and_depth_are_bounded() -> None:
    assert embedded(png(prompt="[" * 100_000 + "]" * 100_000)).text is None
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a" * (4 << 20), zip=True)
    assert len(embedded(encoded(PICTURE, "PNG", pnginfo=info)).text or "") <= 1 << 20
    chain = {f"Reroute__{n}": {"": [str(n + 1), 0]} for n in range(2, 5000)}
    found = embedded(png(prompt=graph(KSampler__1={"positive": ["2", 0]}, **chain)))
    assert found.text is None and "too deep" in str(found.problem)


def test_an_import_reads_them_and_names_what_it_does_not_understand(tmp_path: Path) -> None:
    files = {
        "a.png": png(parameters=BLOCK.format("a boat")),
        "b.jpg": commented(BLOCK.format("a house")),
        "c.png": png(prompt=UNCLEAR["2 texts in a graph"][0]),
        "d.png": NOISE_PNG,
        "e.webp": commented(BLOCK.format("a <lora:x:1>tree"), "WEBP"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    given = ImportSource(kind="import", path=str(tmp_path))
    found = {one.name: (one.text, one.problem) for one in list_captions(given)}
    why = "no caption: 2 texts in a graph of ComfyUI: which one is the prompt?"
    assert found == {
        "a.png": ("a boat", None), "b.jpg": ("a house", None), "c.png": (None, why),
        "d.png": (None, "no caption"), "e.webp": ("a tree", None),
    }  # fmt: skip
    kept = given.model_copy(update={"strip": ()})
    assert "a <lora:x:1>tree" in [one.text for one in list_captions(kept)]
    assert "strip" not in given.recorded() and kept.recorded()["strip"] == []


def test_texts_at_the_end_of_a_large_webp_are_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), np.uint8)
    found = Image.Exif()
    found.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + BLOCK.format("a boat").encode("utf-16-be")
    data = encoded(Image.fromarray(noise), "WEBP", lossless=True, method=0, exif=found.tobytes())
    assert len(data) > HEAD_BYTES
    (tmp_path / "a.webp").write_bytes(data)
    (caption,) = list_captions(ImportSource(kind="import", path=str(tmp_path)))
    assert caption.text == "a boat"
