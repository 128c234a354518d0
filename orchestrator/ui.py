"""MLflow's own server on gan-sweep's store, on loopback, and the address of a study's results in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console

from orchestrator import views
from orchestrator.errors import UnreachableError, UsageError
from orchestrator.home import StudyFiles, all_studies, home

HOST = "127.0.0.1"
SHOWN_STUDIES = 20


def results_url(experiment_id: str, port: int) -> str:
    """Where a study's results are: in the server of MLFLOW_TRACKING_URI, or in `gan-sweep ui` on `port`."""
    return _link(os.environ.get("MLFLOW_TRACKING_URI", ""), experiment_id, port)


def study_url(files: StudyFiles, port: int) -> str | None:
    """Where the results of a study are that was sent to MLflow before; None when nothing was, or to another store than
    the one that is chosen now. Looks at no store: the mark of what was sent names it."""
    try:
        store = json.loads(files.shipped.read_text())["store"]
        uri, experiment_id, _ = str(store).rsplit(" ", 2)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http") and chosen.startswith("http"):
        return None
    return _link(uri, experiment_id, port)


def study_words(files: StudyFiles, port: int) -> str | None:
    """How to look at a study's results, like `open_words`; None where `study_url` is."""
    url = study_url(files, port)
    return None if url is None else _words(url, port, served=not url.startswith(f"http://{HOST}:{port}/"))


def _link(uri: str, experiment_id: str, port: int) -> str:
    return views.results_link(
        without_login(uri) if uri.startswith("http") else f"http://{HOST}:{port}", experiment_id
    )


def without_login(uri: str) -> str:
    """A server's address as it may be shown and clicked: the browser asks for name and password.

    >>> without_login("https://me:secret@host:5000/mlflow")
    'https://host:5000/mlflow'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def program() -> str:
    """How to call gan-sweep in this shell: by its name, or by its path when the environment is not active."""
    called, found = Path(sys.argv[0]), shutil.which("gan-sweep")
    if called.name != "gan-sweep" or (found and Path(found).resolve() == called.resolve()):
        return "gan-sweep"
    return min(os.path.relpath(called), str(called), key=len)


def open_words(url: str, port: int) -> str:
    """How to look at the results: the command, if one is needed, and the link."""
    return _words(url, port, served=os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"))


def _words(url: str, port: int, *, served: bool) -> str:
    if served:
        return f"results in MLflow: {url}"
    command = f"{program()} ui" + ("" if port == 5000 else f" --port {port}")
    return f"results in MLflow: run [bold]{command}[/bold] and open\n  {url}"


def serve(port: int, console: Console) -> None:
    """Serve MLflow on 127.0.0.1:`port` until Ctrl-C. Raises UsageError when the port is taken."""
    from orchestrator.tracking import open_client, tracking_uri

    uri = tracking_uri()
    if uri.startswith("http"):
        raise UsageError(f"MLFLOW_TRACKING_URI names a server; open it in a browser: {without_login(uri)}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UsageError(
                f"port {port} is in use; choose another: gan-sweep ui --port {port + 1}"
            ) from None
    client = open_client()
    studies = all_studies()
    found = [(files.name, client.get_experiment_by_name(files.name)) for files in studies[:SHOWN_STUDIES]]
    links = [f"{name}: {results_url(e.experiment_id, port)}" for name, e in found if e is not None]
    if len(studies) > len(links):
        links.append(f"and {len(studies) - len(links)} more: http://{HOST}:{port}")
    addresses = [f"localhost:{port}", f"{HOST}:{port}"]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four more processes that nothing here needs
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    arguments = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", uri,
        "--artifacts-destination", str(home() / "mlflow" / "artifacts"),
        "--host", HOST, "--port", str(port), "--workers", "1",
        "--allowed-hosts", ",".join(addresses),  # exact: MLflow's default globs admit names that can be rebound
        "--cors-allowed-origins", ",".join(f"http://{address}" for address in addresses),
    ]  # fmt: skip
    log = home() / "mlflow" / "server.log"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open(log, "wb") as output:
        server = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
    try:
        with console.status("MLflow is starting"):
            while not _answers(port):
                if server.poll() is not None:
                    raise UnreachableError(f"MLflow's server did not start; it says why in {log}")
                time.sleep(0.2)
        for link in links:
            console.print(link, soft_wrap=True)
        console.print("Ctrl-C ends the server", style="dim")
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
