"""Sizes of a codec and what was measured of it in, the model card for the Hub out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.learned.sizes import Sizes
from pipeline.markdown import Safe, code, escape, table

KINDS = {
    "hyperprior": "scale hyperprior codec (Ballé et al., 2018)",
    "mean-scale": "mean-scale hyperprior codec without autoregression (Minnen et al., 2018)",
    "catc": "cross-attention transformer codec",
    "catc-light": "light cross-attention transformer codec",
    "tcm": "mixed transformer and CNN codec (TCM; Liu et al., 2023)",
    "elic": "codec of uneven groups of channels (ELIC; He et al., 2022)",
}


@dataclass(frozen=True)
class RatePoint:
    """Means over the images of one set, each measured on its decoded uint8 pixels.

    Attributes:
        codec: this model, or what it is compared with, settings included.
        pictures: the set's name.
        count: of images.
        bpp: bits a pixel of whole files, the prompt in them too.
        bpp_without_prompt: the same without the prompt's bytes.
        psnr: of RGB, in dB.
        ms_ssim: of RGB, 0 to 1; None where it was not measured.
    """

    codec: str
    pictures: str
    count: int
    bpp: float
    bpp_without_prompt: float
    psnr: float
    ms_ssim: float | None = None


def _table(points: Sequence[RatePoint]) -> str:
    headings = ("codec", "images", "bpp", "without prompt", "PSNR (dB)", "MS-SSIM")
    rows = [
        (
            escape(point.codec),
            escape(f"{point.pictures} ({point.count:,})"),
            Safe(f"{point.bpp:.4f}"),
            Safe(f"{point.bpp_without_prompt:.4f}"),
            Safe(f"{point.psnr:.2f}"),
            Safe("" if point.ms_ssim is None else f"{point.ms_ssim:.4f}"),
        )
        for point in sorted(points, key=lambda p: (p.pictures, p.codec.partition(" ")[0], p.bpp))
    ]
    return "\n".join(table([Safe(heading) for heading in headings], rows, right=4))


def card(
    sizes: Sizes,
    points: Sequence[RatePoint] = (),
    *,
    licence: str = "apache-2.0",
    data: Sequence[str] = (),
    training: str = "",
    model: str = "FOLDER_OR_HUB_ID",
) -> str:
    """A model card: Markdown with the front matter that the Hub reads.

    Args:
        sizes: of the network.
        points: what was measured; without any the card says so.
        licence: identifier of the Hub.
        data: Hub ids of the data sets it was trained on.
        training: how it was trained, Markdown.
        model: the folder or Hub id that commands are shown with.
    """
    import yaml

    front = {
        "license": licence,
        "library_name": "aigi",
        "pipeline_tag": "image-to-image",
        "tags": ["image-compression", "learned-compression", sizes.kind],
        **({"datasets": list(data)} if data else {}),
    }
    prompt = "" if sizes.text is None else ' --prompt "WHAT IT SHOWS"'
    argument = "" if sizes.text is None else ', "WHAT IT SHOWS"'
    if sizes.text is None:
        text = "It does not read prompts, and stores none."
    else:
        at = f" at revision {code(sizes.text.revision)}" if sizes.text.revision else ""
        text = (
            f"It reads the prompt through the frozen text encoder {code(sizes.text.tower)}{at} "
            f"({sizes.text.features}); the prompt is stored in the file and counts."
        )
    measured = (
        f"Rates are those of whole files.\n\n{_table(points)}"
        if points
        else "Nothing was measured yet."
    )
    if sizes.qualities > 1:
        prompt += f" --quality {sizes.qualities}"
        argument += f", quality={sizes.qualities}"
        text += f" It codes at {sizes.qualities} qualities, from 1, the lowest rate."
    shape = ", ".join(
        f"{name} = {value}"
        for name, value in sizes.model_dump(exclude={"kind", "name", "text", "qualities"}).items()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---

# {sizes.name}

A {KINDS[sizes.kind]} for images; {shape}. {text}

```sh
aigi encode image.png{prompt} --model {model} -o image.aigi
aigi decode image.aigi --model {model} -o decoded.png
```

```python
from pipeline.learned.codec import load

codec = load("{model}")
data = codec.encode(image{argument})  # uint8, height x width x 3
image = codec.decode(data)
```

## Rate and distortion

{measured}

## Training

{training.strip() or "Not trained: the weights are random."}

## What is promised

A file decodes to the same latents on every machine, or fails with an error. The decoded image is
equal to the encoder's reconstruction with the encoder's settings (machine, device, threads, torch);
elsewhere some pixels may differ by 1.
"""
