"""Settings of a codec and of its encoder are in its digest, and those of older runs are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import AigiError
from pipeline.codecs import learned
from pipeline.codecs.codec import CodecSettings, Here, named_codec
from pipeline.codecs.table import CODECS, digest, opened, qualities, row_of, searchable
from pipeline.learned import codec as codec_module
from tests.learned.conftest import pictures, small

OLD = {
    "jpeg": "73fd8651",
    "jpeg-444": "0c7804ac",
    "jpeg2000": "d21cdf00",
    "webp": "7880dfb2",
    "avif": "875a62e7",
    "jpegxl": "1cda87af",
    "hevc": "03e3e503",
    "bpg": "abd60bc3",
    "vvc": "9c37b8ee",
    "vtm": "66059599",
    "compressai:mbt2018-mean": "6beddf2c",
    "catc-small": "87d2ef97",
    "mean-scale-small": "d0234f68",
}
"""By bare name, digests of the time when settings of encoders were not part of them."""


@pytest.mark.parametrize("name", OLD)
def test_measurements_of_before_are_found(name: str) -> None:
    assert digest(CodecSettings.model_validate(named_codec(name))) == OLD[name]


def test_settings_of_a_codec_are_in_its_shards_name(tmp_path: Path) -> None:
    plain = CodecSettings(codec="vvc")
    assert digest(plain) == digest(CodecSettings(codec="vvc", name="x", qualities=(30,)))
    assert digest(plain) != digest(CodecSettings(codec="vvc", preset="slow"))
    assert digest(plain) == digest(CodecSettings(codec="vvc", preset="medium"))
    hevc = CodecSettings(codec="hevc")
    assert digest(hevc) == digest(CodecSettings(codec="hevc", preset="slow"))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    model = CodecSettings(codec="learned", models=(str(tmp_path),))
    before = digest(model)
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert digest(model) != before  # trained anew in the same folder
    with pytest.raises(AigiError, match=r"no such folder"):
        digest(CodecSettings(codec="learned", models=(str(tmp_path / "absent"),)))


def _digests() -> dict[str, str]:
    return {name: digest(CodecSettings(codec=name)) for name in CODECS}


@pytest.mark.parametrize("name", CODECS)
def test_a_changed_setting_of_an_encoder_is_another_codec(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, row = _digests(), CODECS[name]
    seen = {before[name]}
    for settings in ({**row.settings, "new": {"deep": 1}}, {**row.settings, "new": {"deep": 2}}):
        monkeypatch.setitem(CODECS, name, replace(row, settings=settings))
        now = _digests()
        assert now[name] not in seen and {**now, name: ""} == {**before, name: ""}
        seen.add(now[name])
    if row.settings:  # none at all is a change too
        monkeypatch.setitem(CODECS, name, replace(row, settings={}))
        assert digest(CodecSettings(codec=name)) not in seen
    monkeypatch.setitem(CODECS, name, row)
    assert _digests() == before


def test_a_new_codec_has_its_settings_in_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for settings in ({}, {"subsampling": "4:2:0"}, {"subsampling": "4:4:4"}):
        monkeypatch.setitem(CODECS, "stub", replace(CODECS["jpeg"], settings=settings))
        found.add(digest(CodecSettings(codec="stub")))
    assert len(found) == 3


def test_fractions_lie_between_the_qualities_of_one_network() -> None:
    points = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1)]
    assert learned.point(points, 1) == ("a", 1) and learned.point(points, 5) == ("c", 1)
    assert learned.point(points, 2.5) == ("a", 2.5)
    assert learned.point([("b", 1), *points], 3.37) == ("a", 2.37)
    for quality, two in ((3.5, "a and b"), (4.005, "b and c")):
        with pytest.raises(AigiError, match=f"quality {quality:g} lies between two models, {two}"):
            learned.point(points, quality)
    with pytest.raises(AigiError, match=r"in steps of 0\.005"):
        learned.point(points, 1.001)
    grid = learned.grid(points)
    assert len(grid) == 43 and grid[:2] == (1, 1.05) and grid[-3:] == (3, 4, 5)
    assert all(learned.point(points, quality) for quality in grid)


def test_a_network_that_comes_with_aigi_is_measured_between_its_qualities() -> None:
    given = CodecSettings.model_validate(
        named_codec("catc-small") | {"qualities": [2, 1.5, 1]}  # type: ignore[operator]
    )
    assert qualities(given) == (1, 1.5, 2)
    assert min(searchable(given)) == 1 and max(searchable(given)) == 4
    for wrong, why in ((1.001, "in steps of 0.005"), (4.5, "is not in 1 to 4")):
        with pytest.raises(AigiError, match=f"benchmark.codecs: catc-small: .*{why}"):
            qualities(given.model_copy(update={"qualities": (wrong,)}))
    both = given.model_copy(update={"models": ("catc-small", "mean-scale-small")})
    with pytest.raises(AigiError, match=r"quality 4\.5 lies between two models"):
        qualities(both.model_copy(update={"qualities": (4.5,)}))


def test_an_effort_is_part_of_the_digest_and_none_is_not() -> None:
    given = CodecSettings.model_validate(named_codec("catc-small"))
    assert digest(given) == digest(given.model_copy(update={"qualities": (1.0, 1.5)}))
    assert len({digest(given.model_copy(update={"effort": n})) for n in (0, 1, 2)}) == 3
    with pytest.raises(AigiError, match="jpeg takes no effort"):
        row_of(CodecSettings(codec="jpeg", effort=1))


def test_a_network_is_loaded_once_for_all_its_qualities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    loading = codec_module.load

    def counted(name: str, *more: Any, **switches: Any) -> Any:
        calls.append(name)
        return loading(name, *more, **switches)

    monkeypatch.setattr(codec_module, "load", counted)
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        small("mean-scale", seed, qualities=2).save_pretrained(folder)

    def coded(folder: str, quality: float) -> bytes:
        given = CodecSettings(codec="learned", models=(folder,))
        return opened(given, quality, Here(device="cpu")).encode(pictures(1)[0])

    files = [coded(folders[0], quality) for quality in (1, 1.5, 2)]
    assert len(set(files)) == 3 and calls == folders[:1]
    other = coded(folders[1], 2)
    assert other != files[2] and calls == folders
    # A folder that was written anew is another codec.
    small("mean-scale", 5, qualities=2).save_pretrained(folders[1])
    assert coded(folders[1], 2) != other and len(calls) == 3
