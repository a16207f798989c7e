"""The stock serving stack on this machine: the real multi-model-server with the Hugging Face inference toolkit.

It has a virtual environment of its own (``make stock``), because it needs other versions of almost everything.
``command`` prepares a folder and returns the command line; ``process.py`` starts, awaits and stops it, and the guard
also ends the Python workers, which the server itself would leave behind.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from mme.runner.errors import ContainerError

VENV_VARIABLE = "MME_STOCK_VENV"
HANDLER = "sagemaker_huggingface_inference_toolkit.handler_service"

# The server and its workers meet at sockets in the temporary folder, named like .mms.sock.9000. The system takes a
# path of 104 (macOS) to 108 (Linux) bytes there, and a worker that gets a longer one never starts.
_LONGEST_SOCKET_FOLDER = 80


class StockMissing(ContainerError):
    """The stock stack cannot be run here; the message says what is missing and how to get it."""


def command(port: int, work_dir: Path) -> tuple[list[str], dict[str, str]]:
    """The stock server's command line, and the environment that it needs besides the usual.

    It listens on ``port`` of the loopback interface; what it writes goes below ``work_dir``. Raises StockMissing.
    """
    python = venv_python()
    java = find_java()
    packages = _site_packages(python)
    folder = work_dir.resolve() / "mms"
    for name in ("logs", "ml"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    scratch = _scratch(folder)
    properties = folder / "config.properties"
    properties.write_text(
        "\n".join(
            f"{name}={value}"
            for name, value in {
                "inference_address": f"http://127.0.0.1:{port}",
                "management_address": f"http://127.0.0.1:{port}",
                # The rest is what the toolkit itself writes in multi-model mode.
                "enable_envvars_config": "true",
                "model_store": "/",
                "default_service_handler": HANDLER,
                "default_workers_per_model": "1",
                "default_response_timeout": "60",
                "async_logging": "true",
                "decode_input_request": "false",
            }.items()
        )
        + "\n",
        encoding="utf-8",
    )
    # What `multi-model-server --start` would start and leave running: this is the server itself, to be waited for.
    words = [
        java,
        f"-Dmodel_server_home={packages}",
        f"-Dlog4j.configurationFile={(packages / 'sagemaker_inference' / 'etc' / 'log4j2.xml').as_uri()}",
        f"-Djava.io.tmpdir={scratch}",
        "-XX:-UseContainerSupport",
        "-cp",
        str(packages / "mms" / "frontend" / "*"),
        "com.amazonaws.ml.mms.ModelServer",
        "--python",
        str(python),
        "-f",
        str(properties),
        "-s",
        "/",
    ]
    environment = {
        "SAGEMAKER_HANDLER": HANDLER,
        "SAGEMAKER_BASE_DIR": str(folder / "ml"),
        "TEMP": str(scratch),
        "TMPDIR": str(scratch),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # The workers must find their own packages and none of ours.
        "PYTHONPATH": "",
        "PYTHONNOUSERSITE": "1",
    }
    return words, environment


def venv_python() -> Path:
    """The Python of the stock stack's virtual environment. Raises StockMissing."""
    named = os.environ.get(VENV_VARIABLE)
    venv = Path(named) if named else Path(__file__).resolve().parents[3] / ".venv-stock"
    # Not resolved: a virtual environment's Python is a link, and knows its packages by the link's place.
    python = venv.absolute() / "bin" / "python"
    if not python.exists():
        raise StockMissing(
            f"The stock serving stack is not installed: there is no {python}. "
            f"Run `make stock`, or name the virtual environment that has it in {VENV_VARIABLE}."
        )
    if not (_site_packages(python) / "mms" / "frontend" / "model-server.jar").is_file():
        raise StockMissing(
            f"{venv} has no multi-model-server in it. Run `make stock`, which installs all of requirements/stock.txt."
        )
    return python


def find_java() -> str:
    """The Java to run the server with: JAVA_HOME's, else the one on PATH. Raises StockMissing."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    advice = "multi-model-server is a Java program: install a Java runtime (11 or 17, say openjdk-17-jre-headless)"
    if java is None:
        raise StockMissing(f"There is no java on PATH. {advice}.")
    try:
        # macOS has a placeholder called java, which only says that Java is not installed.
        done = subprocess.run([java, "-version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise StockMissing(f"{java} cannot be run: {problem}. {advice}, or correct JAVA_HOME.") from None
    if done.returncode != 0:
        raise StockMissing(f"{java} does not work: {done.stderr.decode(errors='replace').strip()} {advice}.")
    return java


def _site_packages(python: Path) -> Path:
    folders = sorted(python.parents[1].glob("lib/python3.*/site-packages"))
    if not folders:
        raise StockMissing(f"{python.parents[1]} is not a virtual environment. Remove it and run `make stock`.")
    return folders[0]


def _scratch(folder: Path) -> Path:
    """A folder for temporary files whose path is short enough for a socket's."""
    scratch = folder / "tmp"
    if len(os.fsencode(scratch)) > _LONGEST_SOCKET_FOLDER:
        # Where temporary files go by default may be as deep: on macOS it always is.
        root = tempfile.gettempdir()
        if len(os.fsencode(root)) + len("/mme-stock-12345678") > _LONGEST_SOCKET_FOLDER:
            root = "/tmp"  # noqa: S108 (made with mkdtemp)
        scratch = Path(tempfile.mkdtemp(prefix="mme-stock-", dir=root))
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    return scratch
