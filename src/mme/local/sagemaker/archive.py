"""A model's archive, from the bucket to a folder of an instance's disk."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from mme.local.sagemaker.errors import ArchiveUnavailable, BadTarget, ModelFailed
from mme.local.sagemaker.spec import LOAD_SECONDS, Fetch, VariantSpec


def bring(fetch: Fetch, spec: VariantSpec, target: str, home: Path, deadline: float) -> None:
    """Fetches the target's archive and extracts it to ``home/model``; nothing is left where that fails.

    Raises InvokeFailed, NoRoom where the archive takes more than the volume, or OSError. ``deadline`` is of the
    monotonic clock.
    """
    from mme.archive.untar import NoRoom, extract
    from mme.errors import ArchiveError

    def in_time(_: int) -> None:
        if time.monotonic() > deadline:
            raise ModelFailed(0, f"The archive could not be unpacked within {LOAD_SECONDS:.0f} s.")

    key = f"{spec.prefix}{target}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        archive = fetch(bucket=spec.bucket, key=key, role_arn=spec.role_arn, into=home)
        extract(archive, home / "model", max_bytes=spec.volume_bytes, progress=in_time)
        archive.unlink()
    except ArchiveUnavailable as problem:
        raise BadTarget(
            "MODEL_DATA_DOWNLOAD_FAILED",
            f"Failed to download model data(bucket: {spec.bucket}, key: {key}). Please ensure that there is "
            "an object located at the URL and that the role passed to CreateModel has permissions to download the "
            "model.",
        ) from problem
    except NoRoom:
        raise
    except ArchiveError as problem:
        raise BadTarget(
            "MODEL_DATA_EXTRACTION_FAILED",
            f"Failed to extract model data(bucket: {spec.bucket}, key: {key}). Please ensure that the object "
            f"located at the URL is a valid tar.gz archive. {problem.message}",
        ) from problem
    finally:
        if not (home / "model").is_dir():
            shutil.rmtree(home, ignore_errors=True)
