"""A workflow and overrides in; the same run on the Ray cluster that this job was sent to.

ray job submit --working-dir . -- python workflows/ray_job.py workflows/regenerate.yaml
    --set run=s3://BUCKET/runs/pku-aigi-500k --set compute.workers=8
ray job submit --working-dir . -- python workflows/ray_job.py workflows/train.yaml
    --set run=/SHARED/DISK/train --set compute.workers=8    # a folder that all machines see
"""

from __future__ import annotations

import sys

from pipeline.cli import app

if __name__ == "__main__":
    # `auto` is the cluster that the job runs in; a `--set` of the caller's comes later and wins.
    app(["run", sys.argv[1], "--set", "compute.ray=auto", *sys.argv[2:]])
