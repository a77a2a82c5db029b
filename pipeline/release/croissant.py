"""A specification and the files of a release in, Croissant metadata (croissant.json) out.

Croissant 1.0 is JSON-LD: https://docs.mlcommons.org/croissant/docs/croissant-spec.html. Every
parquet file is a FileObject with its sha256 and its path, which starts at croissant.json, so that
it holds for a folder as for a repository. The files of one config are a FileSet that readers take
from the folder, and its rows a RecordSet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.manifest import FileRecord
from pipeline.markdown import plain
from pipeline.plan.specification import Dataset
from pipeline.settings import SPLITS
from pipeline.tables import IMAGE, release_fields

CROISSANT = "croissant.json"
_PARQUET = "application/x-parquet"
_SPLIT_URLS = {
    "train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit",
}  # fmt: skip

# The names of the specification's own context, less what no release uses.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def _data_type(kind: pa.DataType) -> str:
    if kind == IMAGE:
        return "sc:ImageObject"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    return "sc:Boolean" if pa.types.is_boolean(kind) else "sc:Text"


def _fields(config: str, columns: Iterable[tuple[pa.Field, str]]) -> list[dict[str, Any]]:
    files = {"@id": f"{config}-files"}
    found = []
    for column, meaning in columns:
        source: dict[str, Any] = {"fileSet": files, "extract": {"column": column.name}}
        if column.type == IMAGE:
            source["transform"] = {"jsonPath": "bytes"}
        found.append(
            {
                "@type": "cr:Field",
                "@id": f"{config}/{column.name}",
                "name": column.name,
                "description": meaning,
                "dataType": _data_type(column.type),
                "source": source,
            }
        )
    # No reference to the `splits` record set: to join it, mlcroissant reads every file of the
    # config into memory; without it, it goes file by file, and by split where it is asked to.
    pattern = rf"^{config}/({'|'.join(SPLITS)})-.+\.parquet$"
    split = {
        "@type": "cr:Field",
        "@id": f"{config}/split",
        "name": "split",
        "description": "train, validation or test, from the name of the file",
        "dataType": "sc:Text",
        "source": {
            "fileSet": files,
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": pattern},
        },
    }
    return [split, *found]


def _configs(dataset: Dataset, files: list[FileRecord]) -> list[str]:
    return [name for name in dataset.sources if any(file["config"] == name for file in files)]


def licences(dataset: Dataset, files: list[FileRecord]) -> list[str]:
    """Licences of a dataset and of its sources that have files, each once: URLs, or names."""
    parts = [dataset, *(dataset.sources[config] for config in _configs(dataset, files))]
    return list(dict.fromkeys(part.licence_url or plain(part.licence) for part in parts))


def croissant(
    dataset: Dataset,
    version: str,
    files: list[FileRecord],
    keywords: list[str],
    formats: Sequence[str],
    options: bool | Collection[str] = False,
) -> Mapping[str, Any]:
    """Croissant metadata of a release, as a JSON object.

    Args:
        dataset: only sources that have files are described.
        files: in the order in which they are listed.
        formats: names of what its images are stored in.
        options: whether a source has some, so that files have a column of them; or the configs
            whose files have it.
    """
    configs = _configs(dataset, files)
    having = (configs if options else ()) if isinstance(options, bool) else options
    splits = [split for split in SPLITS if any(file["split"] == split for file in files)]
    distribution: list[dict[str, Any]] = [
        {
            "@type": "cr:FileSet",
            "@id": f"{config}-files",
            "name": f"{config}-files",
            "description": plain(dataset.sources[config].title),
            "encodingFormat": _PARQUET,
            "includes": f"{config}/*.parquet",
        }
        for config in configs
    ]
    distribution += [
        {
            "@type": "cr:FileObject",
            "@id": file["path"],
            "name": file["path"],
            "contentUrl": file["path"],
            "contentSize": f"{file['bytes']} B",
            "encodingFormat": _PARQUET,
            "sha256": file["sha256"],
        }
        for file in files
    ]
    record_sets: list[dict[str, Any]] = [
        {
            "@type": "cr:RecordSet",
            "@id": "splits",
            "name": "splits",
            "dataType": "cr:Split",
            "key": {"@id": "splits/name"},
            "field": [
                {
                    "@type": "cr:Field",
                    "@id": "splits/name",
                    "name": "name",
                    "dataType": "sc:Text",
                },
                {
                    "@type": "cr:Field",
                    "@id": "splits/url",
                    "name": "url",
                    "dataType": "sc:URL",
                },
            ],
            "data": [{"splits/name": split, "splits/url": _SPLIT_URLS[split]} for split in splits],
        }
    ]
    record_sets += [
        {
            "@type": "cr:RecordSet",
            "@id": config,
            "name": config,
            "description": plain(dataset.sources[config].title),
            "key": {"@id": f"{config}/image_id"},
            "field": _fields(config, release_fields(formats, config in having)),
        }
        for config in configs
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": dataset.name,
        "alternateName": plain(dataset.title),
        "description": plain(dataset.description or dataset.title),
        "version": version,
        "license": licences(dataset, files),
        **({"citeAs": dataset.citation.strip()} if dataset.citation.strip() else {}),
        **({"inLanguage": list(dataset.language)} if dataset.language else {}),
        "keywords": keywords,
        "distribution": distribution,
        "recordSet": record_sets,
    }
