"""A Hub on this machine: calls of the real Hugging Face clients in, repositories in a folder out.

    with serve(folder) as hub:
        HfApi(hub.endpoint, hub.token).create_repo("org/name", repo_type="dataset")
        subprocess.run([...], env=hub.environment())

or, to try things by hand, `python -m tests.hub FOLDER --port 8970`.

It speaks what huggingface_hub 2.x, hf_xet and datasets ask of datasets and models: repositories,
commits, branches, tags, pull requests, listings, LFS (basic and multipart) and Xet uploads, ranged
downloads, private repositories, two roles. Faults are planted with `hub.faults.add`. Where the
public Hub's answer is not known, a comment says "our choice".
"""

from tests.hub.server import serve
from tests.hub.state import Hub

__all__ = ["Hub", "serve"]
