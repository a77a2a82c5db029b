"""A repository, a revision and a file name in, a local file out; or what to do without one."""

from __future__ import annotations

from pipeline import AigiError


def hub_file(where: str, repository: str, file: str, revision: str | None = None) -> str:
    """Local path of a file of a Hub repository; downloaded where the cache does not have it.

    Args:
        where: section and key, for messages.

    Raises:
        AigiError: no such repository, revision or file, or no way to get it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    at = f"{repository}@{revision or 'main'}"
    try:
        return str(hf_hub_download(repository, file, revision=revision))
    except RemoteEntryNotFoundError as error:
        raise AigiError(
            f"{where}: {at} has no {file}. Take another model, or give a copy of this one as "
            "folder (its weights as safetensors; pickle files are not read)."
        ) from error
    except (HFValidationError, OSError) as error:
        raise AigiError(
            f"{where}: cannot get {file} of {at}, and it is not in the cache: "
            f"{str(error).strip().splitlines()[0]}\n"
            "Correct the name, or download the model elsewhere and give it as folder."
        ) from error
