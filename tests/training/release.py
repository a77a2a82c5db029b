"""Small releases made by hand: what training and measuring read, and nothing of the building."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.pixels import RGB, png_bytes
from pipeline.progress import Progress
from pipeline.tables import IMAGE
from pipeline.workflow import Workflow


def write_release(
    folder: Path, parts: Mapping[tuple[str, str], list[RGB]], row_group: int = 4
) -> Path:
    """A release with these pictures of each source and split; prompts name source and number."""
    files = []
    for (source, split), pictures in parts.items():
        path = f"{source}/{split}-00000-of-00001.parquet"
        (folder / source).mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "image": {"bytes": png_bytes(picture), "path": None},
                "image_id": f"{source}-{split}-{number}",
                "text": f"a red boat {number} by {source}",
                "source": source,
                "width": picture.shape[1],
                "height": picture.shape[0],
                "watermark": "none",
                "pair_id": None,
            }
            for number, picture in enumerate(pictures)
        ]
        schema = pa.schema(
            [
                ("image", IMAGE),
                *((name, pa.string()) for name in ("image_id", "text", "source")),
                *((name, pa.int32()) for name in ("width", "height")),
                *((name, pa.string()) for name in ("watermark", "pair_id")),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / path, row_group_size=row_group)
        sha256 = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        files.append({"path": path, "config": source, "split": split, "sha256": sha256})
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


def trained(workflow: Workflow, progress: Progress) -> list[Path]:
    """Folders of the codecs that a workflow trains."""
    from pipeline.training.train import train

    assert workflow.train is not None
    return train(workflow.train, workflow.run, workflow.compute, progress)
