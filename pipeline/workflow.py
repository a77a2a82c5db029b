"""Workflow file (YAML) in, one frozen, checked `Workflow` out.

A workflow holds parameters only. Unknown keys are errors, a stage runs if its section is
present, relative paths are taken from the folder of the YAML file, and `--set a.b=c` replaces
one value (a relative path given that way is taken from the current folder, as a shell user
expects).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pipeline import AigiError

M = TypeVar("M", bound=BaseModel)
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _FromCommandLine(str):
    """A `--set` value: relative paths in it start at the current folder."""


def located(value: str, base: Path | None) -> str:
    """The place that a workflow file in the folder `base` means by `value`."""
    if "://" in value:
        return value
    start = Path.cwd() if base is None or isinstance(value, _FromCommandLine) else base
    return str((start / Path(value).expanduser()).resolve())


def _locate(value: object, info: ValidationInfo) -> object:
    return located(value, (info.context or {}).get("base")) if isinstance(value, str) else value


Location = Annotated[str, BeforeValidator(_locate)]
"""A local path (made absolute) or an fsspec URL (`s3://…`, kept as written)."""


class Settings(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Compute(Settings):
    """Where the work runs. Nothing here changes a byte of the output but `threads` (on CPU)."""

    ray: str | None = Field(None, description="null: in this process; local; or a Ray address")
    workers: Count = Field(1, description="Ray actors for each stage")
    gpus_per_worker: float | None = Field(
        None, ge=0, description="null: 1 where Ray sees a GPU, else 0"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    gpu_tflops: float = Field(
        125.0, gt=0, description="TFLOP/s that one GPU sustains; for the estimates of --dry-run"
    )
    threads: Count = Field(
        1, description="torch threads a worker; float sums on CPU depend on it, so it is recorded"
    )


class SplitShares(Settings):
    """Shares of all prompts that go to each held-out split; the rest is train.

    They are reserves, not quotas: the plan takes exactly the published counts from each.
    """

    validation: Share = 0.005
    test: Share = 0.01

    @model_validator(mode="after")
    def _leave_train(self) -> SplitShares:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave a share for train (sum below 1)")
        return self


class _Captions(Settings):
    name: str | None = Field(None, description="value of the `source` column; default: the kind")
    licence: str | None = Field(
        None, description="of the captions, for the dataset card; null: not stated"
    )


class Cc12mCaptions(_Captions):
    """CC12M layout: `url<TAB>caption` a line, no header, no quoting, plain or .gz."""

    kind: Literal["cc12m"]
    path: Location


class CocoCaptions(_Captions):
    """The official COCO captions JSON (`annotations: [{id, image_id, caption}]`)."""

    kind: Literal["coco"]
    path: Location


class TableCaptions(_Captions):
    """A CSV, JSON-lines or parquet file with one caption column."""

    kind: Literal["csv", "jsonl", "parquet"]
    path: Location
    column: str


class TextCaptions(_Captions):
    """A text file with one caption a line, plain or .gz."""

    kind: Literal["text"]
    path: Location


class HubCaptions(_Captions):
    """A dataset on the Hugging Face Hub, or a local dataset folder, streamed by `datasets`."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str
    revision: str | None = None


class GrammarCaptions(_Captions):
    """Our own generator: `count` distinct sentences of a grammar file."""

    kind: Literal["grammar"]
    path: Location
    start: str = Field("start", description="the rule that sentences are drawn from")
    count: Count
    seed: int = 0


class BlipCaptions(_Captions):
    """Photos captioned by a BLIP model (folder, zip or parquet of photos, or a dataset)."""

    kind: Literal["blip"]
    photos: Location | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    column: str = "image"
    model: str = "Salesforce/blip-image-captioning-large"
    revision: str | None = None
    folder: Location | None = Field(None, description="a local copy of the model")
    batch_size: Count = 16
    shard_rows: Count = 512
    max_new_tokens: Count = 40
    num_beams: Count = 3
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_origin(self) -> BlipCaptions:
        if (self.photos is None) == (self.dataset is None):
            raise ValueError("give either photos (folder, zip, parquet) or dataset")
        return self


CaptionSource = Annotated[
    Cc12mCaptions
    | CocoCaptions
    | TableCaptions
    | TextCaptions
    | HubCaptions
    | GrammarCaptions
    | BlipCaptions,
    Field(discriminator="kind"),
]


class PromptFilters(Settings):
    """What a caption must be to become a prompt. Every refusal is a row of the rejects table."""

    min_words: Count = 3
    max_words: Count = 77
    max_tokens: Count | None = Field(
        None, description="CLIP tokens, ends included; null: keep and mark `truncated` above 77"
    )
    min_ascii_letters: Share = Field(0.9, description="share of ASCII among the letters")
    max_noise: Share = Field(
        0.2, description="share of words that are URLs, hashtags, handles or digits and signs"
    )
    person: str | None = Field(
        "person", description="what <PERSON> becomes; null: such captions are rejected"
    )
    blocklist: Location | None = Field(None, description="text file, one word or phrase a line")


class PromptSelection(Settings):
    """How many prompts to keep, and which."""

    count: Count | None = Field(None, description="null: all that pass")
    method: Literal["random", "diverse"] = "random"
    seed: int = 0
    pool: float = Field(4.0, ge=1, description="diverse: candidates looked at, times count")


class Prompts(Settings):
    """Captions in, the `prompts` table out."""

    sources: tuple[CaptionSource, ...] = Field(min_length=1)
    filters: PromptFilters = PromptFilters()
    near_duplicates: Share | None = Field(
        0.8, description="Jaccard similarity of character 5-grams at which two prompts are one"
    )
    select: PromptSelection = PromptSelection()


class Plan(Settings):
    """Dataset specification and prompts in, the `plan` table out: one row an image."""

    dataset: Location = Field(description="dataset specification (manifests/), or a manifest")
    manifest: Location | None = Field(
        None,
        description="manifest of a release: make the same plan again; only the places of "
        "this workflow (folders and files on this machine) count then",
    )
    sources: tuple[str, ...] | None = Field(None, description="null: all of the specification")
    limit: Count | None = Field(None, description="at most this many images a source and split")
    margin: float = Field(0.0, ge=0, le=1, description="share of extra images, for the filters")
    seed: int = 0
    shard_mb: Annotated[float, Field(gt=0, le=200)] = 200


class DiffusersSource(Settings):
    """How this machine runs a text-to-image source of the specification."""

    kind: Literal["diffusers"] = "diffusers"
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")
    batch_size: Count = 4
    vae: Location | str | None = Field(None, description="another VAE (folder or Hub id)")
    vae_tiling: bool | None = Field(
        None, description="decode in tiles, picture by picture; null: from 1536 pixels a side"
    )
    attention_slicing: bool = False
    compile: bool = False


class ImportSource(Settings):
    """Where the pictures and captions of a closed model lie."""

    kind: Literal["import"]
    path: Location = Field(description="folder, .zip or .parquet of pictures")
    captions: Location | None = Field(
        None, description="CSV or JSONL; null: sidecar .txt, else PNG `parameters` text"
    )
    file_column: str = "file"
    text_column: str = "text"
    split_column: str | None = Field(
        None, description="column with train, validation or test; null: a hash of the prompt"
    )
    fit: Literal["reject", "crop", "keep"] = Field(
        "reject", description="a picture of another size than the specification's"
    )
    max_pixels: Count = 64_000_000


class OriginalSource(Settings):
    """Where the original PKU-AIGI-500K release lies, and which source of it this is."""

    kind: Literal["pku"]
    path: Location = Field(
        description="folder of the whole release as downloaded: archives, split ones too, or "
        "what was unpacked from them"
    )
    subfolder: Literal["SD-2_1-B", "SD-2_1", "SD-XL", "MJ", "MOD"]
    fit: Literal["reject", "crop", "keep"] = Field(
        "reject", description="a picture of another size than the specification's"
    )
    max_pixels: Count = 64_000_000


ImportedSource = ImportSource | OriginalSource


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind or "diffusers")


LocalSource = Annotated[
    Annotated[DiffusersSource, Tag("diffusers")]
    | Annotated[ImportSource, Tag("import")]
    | Annotated[OriginalSource, Tag("pku")],
    Discriminator(_kind),
]


class Images(Settings):
    """The `plan` table in, the `images` table out (PNG bytes and provenance)."""

    png: Literal["fast", "small"] = Field(
        "fast", description="small: 3 to 4 % fewer bytes at a tenth of the speed"
    )
    encode_threads: Count | None = Field(None, description="null: all cores, up to 8")


class Embeddings(Settings):
    """The `images` and `plan` tables in, the `embeddings` table out: CLIP vectors and scores."""

    model: str = Field("ViT-B-32", description="name in open_clip, or hf-hub:ORG/NAME")
    pretrained: str = Field(
        "laion2b_s34b_b79k", description="open_clip's tag of the weights; not used with hf-hub:"
    )
    folder: Location | None = Field(
        None, description="a model on this machine in open_clip's layout; replaces the two above"
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the weight file, checked before any work: open_clip takes no revision",
    )
    batch_size: Count = 64
    decode_threads: Count | None = Field(None, description="null: all cores, up to 8")
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the computation (autocast); the weights stay float32"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Embeddings:
        if self.model.startswith("local-dir:"):
            raise ValueError("give a model on this machine as folder, not as model: local-dir:")
        return self


class SafetyChecker(Settings):
    """The safety checker that Stable Diffusion was published with, for its scores alone."""

    model: str = "CompVis/stable-diffusion-safety-checker"
    revision: str = Field("main", description="commit of the model repository")
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")


class Concept(Settings):
    """Something that a picture may show, in sentences, beside sentences of pictures without it."""

    texts: tuple[str, ...] = Field(min_length=1)
    neutral: tuple[str, ...] = Field(min_length=1)


class Quality(Settings):
    """The `images` table in, the `quality` table out: scores; thresholds are the selection's."""

    safety_checker: SafetyChecker | None = None
    concepts: dict[str, Concept] = Field(
        default_factory=dict, description="by name; they need the embeddings section"
    )
    batch_size: Count = 16
    decode_threads: Count | None = Field(None, description="null: all cores, up to 8")


class Duplicates(Settings):
    """Embeddings, hashes and pixels in, the `duplicates` table out: pairs of near pictures.

    What is found here bounds what the selection may ask for; its thresholds can only be higher.
    """

    scope: Literal["source", "all"] = Field(
        "source",
        description="pairs inside a source, or anywhere; those of a training picture with a "
        "test or validation picture are always found anywhere",
    )
    min_similarity: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.9, description="least cosine of image vectors; null: do not compare vectors"
    )
    min_hash_similarity: Annotated[float, Field(ge=0.75, le=1)] | None = Field(
        None, description="least share of equal bits of perceptual hashes (quality section)"
    )
    clusters: Count | None = Field(
        None,
        description="join so many clusters one by one, as Ray tasks with compute.ray: the same "
        "pairs, for more than some ten million images",
    )


class Selection(Settings):
    """All scores in, the `selection` table out. Null: this reason is not asked for."""

    planned_size: bool = Field(True, description="drop what is not of the planned size")
    max_black: Share | None = Field(0.98, description="share of nearly black pixels")
    max_blank: Share | None = Field(0.98, description="share of the commonest colour")
    min_luminance_std: float | None = Field(None, ge=0, le=128)
    min_entropy: float | None = Field(None, ge=0, le=8, description="bits")
    max_blockiness: float | None = Field(None, description="1: no grid")
    max_nsfw: float | None = Field(None, description="0: what the safety checker flags")
    max_concepts: dict[str, Share] = Field(default_factory=dict)
    min_clip_score: float | None = Field(None, ge=-1, le=1)
    exact_duplicates: bool = Field(True, description="drop pictures of equal pixels")
    min_similarity: float | None = Field(None, gt=0, le=1, description="cosine of duplicates")
    min_hash_similarity: float | None = Field(None, ge=0.75, le=1)
    review: Location | None = Field(None, description="CSV or parquet: image_id, decision")
    rounds: Annotated[int, Field(ge=0, le=9)] = Field(
        0, description="top-up rounds: new generations for what was dropped, until quotas are met"
    )


class Release(Settings):
    """All tables in, parquet files, card and manifest out."""

    version: str = Field("1.0.0", pattern=r"^\d+\.\d+\.\d+$")
    record: Location | None = Field(None, description="folder that gets a copy of the manifest")


class Pictures(Settings):
    """Pictures to measure, analyse or train on, and which of them."""

    place: Location = Field(
        description="release folder, run directory, hf://datasets/ORG/NAME@REVISION, or a folder "
        "of pictures"
    )
    sources: tuple[str, ...] | None = Field(None, description="null: all")
    splits: tuple[Literal["train", "validation", "test"], ...] | None = Field(
        None, description="null: all; a folder's pictures are test"
    )
    limit: Count | None = Field(None, description="at most this many of each source and split")
    name: str | None = Field(None, description="source of a folder's pictures; null: its name")
    captions: Location | None = Field(
        None, description="of a folder: CSV or JSONL; only the files that it names are taken"
    )
    file_column: str = "file"
    text_column: str = "text"


def _locate_model(value: object, info: ValidationInfo) -> object:
    """A folder or pattern of folders where there is one, else the Hub id as it stands."""
    if not isinstance(value, str) or "://" in value:
        return value
    place = located(value, (info.context or {}).get("base"))
    local = value.startswith((".", "/", "~")) or "*" in value or Path(place).exists()
    return place if local else str(value)


def _named_codec(value: object) -> object:
    """`jpeg` means `{codec: jpeg}`; `compressai:NETWORK[:QUALITY]` a network of its zoo.

    So does the name of a network that comes with aigi mean this one.
    """
    if not isinstance(value, str):
        return value
    from pipeline.learned.shipped import shipped

    if value in shipped():
        return {"codec": "learned", "name": str(value), "models": [str(value)]}
    kind, *rest = value.split(":")
    if kind != "compressai" or not rest:
        return {"codec": str(value)}
    found: dict[str, Any] = {"codec": kind, "models": rest[:1]}
    return found | ({"qualities": rest[1:]} if rest[1:] else {})


class CodecSettings(Settings):
    """A codec to measure.

    Its bare name stands for it with the defaults of `pipeline.codecs`, and that of a network that
    comes with aigi for this network.
    """

    codec: str = Field(description="a name of pipeline/codecs/codec.py: jpeg, vvc, learned, …")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")] | None = Field(
        None, description="in tables and figures; null: the codec's, or that of its one network"
    )
    qualities: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="as the codec counts them; of models, all of them: 1, 2, …; null: usual",
    )
    preset: str | None = Field(None, description="of hevc and vvc")
    models: tuple[Annotated[str, BeforeValidator(_locate_model)], ...] = Field(
        (),
        description="learned: names, folders or Hub ids, lowest rate first, or a pattern as "
        "RUN/train/catc-mse-*, lowest λ first; none: `catc-small`, which comes "
        "with aigi; compressai: one network",
    )
    text: Location | None = Field(None, description="learned: folder of the text encoder")
    prompts: bool = Field(True, description="learned: false codes with an empty prompt")

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        zoo = self.codec == "compressai" and self.models
        return self.name or (self.models[0] if zoo else self.codec)


class Strips(Settings):
    """Pictures that are shown beside what each codec makes of them at one rate or distance."""

    count: Count = Field(1, description="pictures of each source")
    bpp: float | None = Field(None, gt=0, description="bits a pixel that every codec is brought to")
    psnr: float | None = Field(None, gt=0, description="or dB")
    crop: Count = Field(160, description="pixels a side of the part that is enlarged")

    @model_validator(mode="after")
    def _one_target(self) -> Strips:
        if (self.bpp is None) == (self.psnr is None):
            raise ValueError("give either bpp or psnr")
        return self


class Complexity(Settings):
    """What codecs cost: a square cut of one picture, coded in a process of its own."""

    sides: tuple[Annotated[int, Field(ge=16, le=8192)], ...] = Field((512, 1024), min_length=1)
    rounds: Count = Field(1, description="after one that does not count; the median is taken")


class Benchmark(Settings):
    """Pictures and codecs in, the `measurements` table and a report out."""

    pictures: Pictures | None = Field(None, description="null: the release of this run")
    codecs: tuple[Annotated[CodecSettings, BeforeValidator(_named_codec)], ...] = Field(
        min_length=1
    )
    anchor: str = Field("vvc", description="the codec that BD-rates are against")
    interpolation: Literal["pchip", "akima", "cubic"] = "pchip"
    clip: Embeddings | None = Field(
        None,
        description="model, as in embeddings, that decoded pictures are compared with their "
        "originals and prompts by; null: they are not",
    )
    lpips: Location | None = Field(
        None,
        description="file of torchvision's AlexNet weights (alexnet-owt-7be5be79.pth, or the same "
        "as safetensors), for LPIPS; it needs aigi[metrics]; null: no LPIPS",
    )
    dists: Location | None = Field(
        None,
        description="file of torchvision's VGG-16 weights (vgg16-397923af.pth, or the same as "
        "safetensors), for DISTS; it needs aigi[metrics]; null: no DISTS",
    )
    watermarks: bool = Field(
        False, description="read the marks of decoded pictures; of those that hold a message"
    )
    strips: Strips | None = Strips(bpp=0.3)
    complexity: Complexity | None = None
    programs: dict[str, Location] = Field(
        default_factory=dict, description="where programs lie: ffmpeg, EncoderApp, bpgenc, …"
    )

    @property
    def distances(self) -> dict[str, str]:
        """Files of weights by kind, of the perceptual distances that are asked for."""
        files = {"lpips": self.lpips, "dists": self.dists}
        return {kind: file for kind, file in files.items() if file is not None}

    @property
    def measured(self) -> Pictures:
        """The pictures; of a section that `Workflow.benchmark_here` has made complete."""
        assert self.pictures is not None
        return self.pictures

    @model_validator(mode="after")
    def _one_each(self) -> Benchmark:
        labels = [codec.label for codec in self.codecs]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two codecs are called {label}: give one of them another name")
        # A workflow without the usual anchor has no BD-rates; the page says so.
        if self.anchor not in (*labels, type(self).model_fields["anchor"].default):
            raise ValueError(
                f"anchor: no codec is called {self.anchor}; there are {', '.join(labels)}"
            )
        return self


class Characteristics(Settings):
    """Pictures in, the `characteristics` table out: texture, colour, compressibility."""

    pictures: tuple[Pictures, ...] = Field(
        (), description="releases and folders; empty: the release of this run"
    )
    distances: tuple[Count, ...] = Field((1,), min_length=1, description="of the GLCM, in pixels")
    angles: tuple[Literal[0, 45, 90, 135], ...] = Field(
        (0, 45, 90, 135), min_length=1, description="of the GLCM, in degrees"
    )
    symmetric: bool = Field(True, description="GLCM: count each pair in both directions")
    crop: Count | None = Field(
        None,
        description="look at the middle of so many pixels a side only, and leave smaller pictures "
        "out, so that sources of different sizes compare",
    )
    lossless: tuple[Literal["png", "jxl"], ...] = Field(
        ("png",), description="files whose bits are counted; jxl: pip install pillow-jxl-plugin"
    )
    max_pixels: Count = 64_000_000
    reference: str | None = Field(
        None, description="source that the others are compared with; null: each with all others"
    )


class ClipScorer(Settings):
    """Cosine of picture and prompt by an open_clip model: CLIPScore, or HPS with its weights."""

    kind: Literal["open_clip"]
    model: str = Field("ViT-B-32", description="as in embeddings")
    pretrained: str = "laion2b_s34b_b79k"
    folder: Location | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class BlipScorer(Settings):
    """Probability that picture and prompt belong together, by BLIP's matching head."""

    kind: Literal["blip_itm"]
    model: str = "Salesforce/blip-itm-large-coco"
    revision: str | None = None
    folder: Location | None = Field(None, description="a local copy of model and processor")


class PickScorer(Settings):
    """PickScore: the scaled cosine of a CLIP model of transformers, trained on preferences."""

    kind: Literal["pick_score"]
    model: str = "yuvalkirstain/PickScore_v1"
    revision: str | None = None
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    folder: Location | None = Field(None, description="a local copy of model and processor")


Scorer = Annotated[ClipScorer | BlipScorer | PickScorer, Field(discriminator="kind")]


class Alignments(Settings):
    """Pictures and their prompts in, the `alignments` table out: do they show what was asked?"""

    pictures: tuple[Pictures, ...] = Field(
        (), description="releases and folders; empty: the release of this run"
    )
    models: dict[str, Scorer] = Field(min_length=1, description="by name: the scores to give")
    attributes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="lists of words that exclude one another, by name: of prompts with one of "
        "them, whether it suits the picture best; the first open_clip model tells",
    )
    batch_size: Count = 16
    max_pixels: Count = 64_000_000

    @model_validator(mode="after")
    def _has_a_judge(self) -> Alignments:
        kinds = {scorer.kind for scorer in self.models.values()}
        if self.attributes and "open_clip" not in kinds:
            raise ValueError("attributes need a model of kind open_clip")
        for name, words in self.attributes.items():
            if len(set(words)) < 2 or len(set(words)) < len(words):
                raise ValueError(f"attributes.{name}: give two different words or more")
        return self


class Train(Settings):
    """Pictures with prompts in, a trained codec for each λ out, below RUN/train."""

    data: Pictures | None = Field(None, description="null: the release of this run")
    network: str | dict[str, Any] = Field(
        "catc-small", description="a name of pipeline/learned/sizes.py, or all sizes"
    )
    lambdas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.013,), min_length=1, description="weight of the distortion; one codec for each"
    )
    together: bool = Field(
        False, description="one network that codes at the rates of all λ, in place of one for each"
    )
    distortion: Literal["mse", "ms-ssim"] = Field(
        "mse", description="λ·255²·MSE + bpp, or λ·(1 - MS-SSIM) + bpp"
    )
    init: Location | None = Field(
        None,
        description="trained codec to start from: its folder, hf://ORG/NAME[@REVISION], or the "
        "`train` folder of a run, for the best one of the same name and λ",
    )
    initial: Literal["transform", "random"] = Field(
        "transform",
        description="where no codec is given to start from: weights that already are a transform "
        "coder, or random ones",
    )
    text_folder: Location | None = Field(None, description="local copy of the text encoder")
    text_dropout: Share = Field(0.1, description="share of crops whose prompt is left empty")
    foreign_prompts: Location | None = Field(
        None,
        description="text file, a prompt a line, of which some stand in for crops' own: so no "
        "prompt of a kind that the data lacks does harm",
    )
    foreign_share: Share = Field(0.25, description="of crops that have a foreign prompt")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="times that an epoch sees a source's pictures; default 1"
    )
    steps: Count = Field(1_000_000, description="of the optimiser; may be raised later")
    batch: Count = Field(8, description="crops of a process in a step, times `accumulate`")
    accumulate: Count = Field(1, description="batches whose gradients make a step")
    crop: Annotated[int, Field(ge=64, multiple_of=64)] = 256
    crops_per_picture: Count = Field(8, description="each time that it is decoded")
    shuffle_buffer: Count = Field(1024, description="crops that wait for their turn")
    threads: Count = Field(2, description="that decode pictures, of each process")
    learning_rate: float = Field(1e-4, gt=0)
    milestones: tuple[Count, ...] = Field(
        (), description="steps at which the rate is multiplied; those to come may be moved"
    )
    milestone_factor: float = Field(0.5, gt=0, le=1)
    warmup: Annotated[int, Field(ge=0)] = Field(
        0, description="steps of a rising rate at the begin"
    )
    aux_learning_rate: float = Field(5e-4, gt=0, description="of the medians of z")
    clip: float = Field(1.0, gt=0, description="greatest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights; 0: none")
    max_skipped: Annotated[int, Field(ge=0)] = Field(
        50, description="steps without a finite gradient that are passed over before it stops"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the networks; loss, weights and sums stay float32"
    )
    compile: bool = False
    seed: int = 0
    log_every: Count = 100
    save_every: Count = 1000
    validate_every: Count = Field(5000, description="on whole pictures, with real files")
    validation_pictures: Annotated[int, Field(ge=0)] = Field(
        16, description="of each source's validation split; 0: no validation"
    )
    tracker: Literal["tensorboard"] | None = Field(
        None, description="of accelerate; needs aigi[train]"
    )

    @model_validator(mode="after")
    def _own_splits(self) -> Train:
        if self.data is not None and self.data.splits is not None:
            raise ValueError("data.splits: training takes train, validation takes validation")
        if self.distortion == "ms-ssim" and self.crop < 192:
            raise ValueError("distortion ms-ssim needs crops of at least 192")
        if self.foreign_prompts is not None and self.text_dropout + self.foreign_share > 1:
            raise ValueError("text_dropout + foreign_share: more than all prompts")
        return self


class Workflow(Settings):
    """One run: a run directory and the sections of the stages that it makes."""

    run: Location
    compute: Compute = Compute()
    split: SplitShares = SplitShares()
    prompts: Prompts | None = None
    sources: dict[str, LocalSource] = Field(default_factory=dict)
    plan: Plan | None = None
    images: Images | None = None
    embeddings: Embeddings | None = None
    quality: Quality | None = None
    duplicates: Duplicates | None = None
    selection: Selection | None = None
    release: Release | None = None
    characteristics: Characteristics | None = None
    alignments: Alignments | None = None
    train: Train | None = None
    benchmark: Benchmark | None = None

    def pictures(self, asked: Pictures | None) -> Pictures:
        """The pictures that a section asks for; None: the release of this run itself."""
        return asked or Pictures(place=self.run)

    def benchmark_here(self) -> Benchmark | None:
        """The benchmark that is asked for, with the pictures that it measures on."""
        if self.benchmark is None:
            return None
        return self.benchmark.model_copy(
            update={"pictures": self.pictures(self.benchmark.pictures)}
        )


READERS = frozenset({"characteristics", "alignments", "train", "benchmark"})
"""Sections that read a release: nothing of them decides a byte of one."""


class _Loader(yaml.SafeLoader):
    """YAML without silent loss: a key that stands twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Mapping[str, Any]:
    """Read a YAML mapping from a local path or fsspec URL.

    Raises:
        AigiError: no such file, not YAML, not a mapping, or a key that stands twice.
    """
    import fsspec

    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            # A manifest is JSON, and of a size for which YAML takes seconds.
            data = json.load(file) if path.endswith(".json") else yaml.load(file, _Loader)
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file") from None
    except (yaml.YAMLError, ValueError) as error:
        raise AigiError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise AigiError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    return data


def check(model: type[M], data: Mapping[str, Any], path: str) -> M:
    """Check `data`, read from `path`, against a pydantic model.

    Raises:
        AigiError: names the file and every wrong field.
    """
    base = None if "://" in path else Path(path).resolve().parent
    try:
        return model.model_validate(data, context={"base": base})
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()
        ]
        raise AigiError("\n".join(lines)) from None


def _with_override(data: Any, override: str) -> Any:
    """Return `data` with one `a.b=value` (value in YAML) replaced; missing sections are made."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise AigiError(f"--set {override}: expected KEY=VALUE, for example plan.limit=8")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise AigiError(f"--set {override}: the value is not YAML: {error}") from error
    if isinstance(value, str):
        value = _FromCommandLine(value)

    def replaced(node: Any, keys: list[str]) -> Any:
        if not keys:
            return value
        key, rest = keys[0], keys[1:]
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise AigiError(
                    f"--set {override}: {key!r} is not an index below {len(node)} of the list"
                )
            return [replaced(item, rest) if i == int(key) else item for i, item in enumerate(node)]
        if node is not None and not isinstance(node, dict):
            raise AigiError(f"--set {override}: {key!r} lies below a plain value")
        return {**(node or {}), key: replaced((node or {}).get(key), rest)}

    return replaced(data, dotted.split("."))


def read(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a workflow file and apply `KEY=VALUE` overrides, unchecked.

    Raises:
        AigiError: the file cannot be read, or an override has no place in it.
    """
    return overridden(read_yaml(str(path)), overrides)


def overridden(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """An unchecked workflow with `KEY=VALUE` overrides applied."""
    found: Any = data
    for override in overrides:
        found = _with_override(found, override)
    return dict(found)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Workflow:
    """Read a workflow file, apply `KEY=VALUE` overrides, and check it.

    With `plan.manifest`, the settings are those of the manifest: see `regenerate.merged`.

    Raises:
        AigiError: names the file, the field and what was expected.
    """
    data = read(path, overrides)
    plan = data.get("plan")
    if isinstance(plan, dict) and plan.get("manifest") is not None:
        from pipeline.dataset import regenerate

        base = None if "://" in str(path) else Path(path).resolve().parent
        data = regenerate.merged(located(plan["manifest"], base), data)
    return check(Workflow, data, str(path))
