"""The part of this process's environment that a container gets: what programs need to run, and nothing secret.

On SageMaker a container gets the model's Environment alone, so variables that a handler needs belong there. Handlers
are other people's programs: variables are passed by an allow-list, and the container gets a home folder of its own,
because credentials and tokens lie in the user's.
"""

from __future__ import annotations

import os
import site
from pathlib import Path

_PASSED = (
    *("PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
    *("JAVA_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "MALLOC_ARENA_MAX"),
)
_PASSED_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_", "CUDA_", "NVIDIA_", "COVERAGE_")

DEFAULT_REGION = "us-east-1"


def base_environment() -> dict[str, str]:
    """The variables of this process that a container gets. SageMaker sets the region's two; so does this."""
    names = set(_PASSED) | {name for name in os.environ if name.startswith(_PASSED_PREFIXES)}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    return {
        **{name: os.environ[name] for name in names if name in os.environ},
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",  # on an EC2 machine its role would be the handler's
    }


def container_environment(scratch: Path) -> dict[str, str]:
    """``base_environment`` with every place that programs write to by themselves below ``scratch``, a folder."""
    passed = base_environment()
    if site.ENABLE_USER_SITE:  # libraries in the user's site-packages are found through the home folder
        passed.setdefault("PYTHONUSERBASE", site.getuserbase())
    return {
        **passed,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(scratch),
        "HF_HOME": str(scratch / "huggingface"),
    }
