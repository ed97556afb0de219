"""The server of the studio: where it listens, whom it answers, and what is left when it ends."""

import os
import socket
import tempfile
import webbrowser
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from panokit.errors import SettingError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

USER = "panokit"
"""The name that goes with the password."""
FONT, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
"""Fonts that every machine has: the page asks no other server for one."""
_PORTS = 100
"""How many ports are tried, from the one that was asked for."""


def serve(host: str, port: int, password: str | None, model: str | None, *, browser: bool) -> None:
    """Serve the studio until the process is interrupted.

    Args:
        host: the address to listen at. One that other machines reach needs a password.
        port: the first port to try.
        password: what people must write before they see the page; None for nothing.
        model: a model to offer besides the installed ones; None for none.
        browser: whether to open the page in a browser.

    Raises:
        SettingError: the address cannot be listened at, or needs a password.
        KeyboardInterrupt: always, in the end.
    """
    check_host(host, password)
    listening = listen(host, port)
    with listening, tempfile.TemporaryDirectory(prefix="panokit-studio-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder}
        _run(listening, host, port, password, model, Path(folder), browser=browser)


def check_host(host: str, password: str | None) -> None:
    """Check that nobody but this machine's users reaches a studio without a password.

    Args:
        host: the address to listen at.
        password: the password, if there is one.

    Raises:
        SettingError: other machines would reach it, and there is no password.
    """
    if not is_loopback(host) and not password:
        raise SettingError(
            f"other machines reach the host {host}, and anybody there could use the studio: add --password PASSWORD, or "
            "leave --host out"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, which may mean any machine
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at a port; at the next free one, if it is in use.

    Args:
        host: the address.
        port: the first port to try, from 1 to 65535.

    Raises:
        SettingError: there is no free port, or no such address.
    """
    if not 0 < port < 1 << 16:
        raise SettingError(f"port is {port}: it must be from 1 to 65535")
    last = min(port + _PORTS, 1 << 16)
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as cause:
        raise SettingError(f"there is no host {host!r:.80} to listen at: {cause.strerror}") from cause
    for number in range(port, last):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address[0], number, *address[2:]))
            listening.listen()
        except OSError as cause:
            listening.close()
            reason = cause
            continue
        return listening
    raise SettingError(f"no port from {port} to {last - 1} of {host} can be listened at ({reason.strerror}): choose another")


def _run(
    listening: socket.socket,
    host: str,
    port: int,
    password: str | None,
    model: str | None,
    folder: Path,
    *,
    browser: bool,
) -> None:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from gradio import processing_utils
    from PIL import Image

    from panokit.jobs import Worker
    from panokit.models import load_model
    from panokit.studio.app import CSS, Page
    from panokit.studio.history import Sessions
    from panokit.studio.runs import Runs
    from panokit.studio.uploads import BYTES, PIXELS

    Image.MAX_IMAGE_PIXELS = PIXELS // 2  # Pillow refuses twice as many, wherever a library opens a picture
    worker = Worker({"model": load_model(model)} if model else {}, trusted=False)
    runs, sessions = Runs(), Sessions(folder / "pictures")
    blocks = Page(worker, runs, sessions, model).blocks()
    # Files that a request names are compared with those that were uploaded only where a page counts as launched.
    blocks.has_launched = blocks.is_running = True
    processing_utils.async_ssrf_protected_download = processing_utils.ssrf_protected_download = _refuse
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=(USER, password) if password else None,
        auth_message="panokit studio: the user is panokit",
        allowed_paths=[],
        max_file_size=BYTES,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        theme=gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=MONO),
        css=CSS,
    )
    config = uvicorn.Config(
        Guard(app, None if password else host), log_level="critical", timeout_graceful_shutdown=1, ws="none", lifespan="on"
    )
    taken = listening.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{taken}"
    line = url if taken == port else f"port {port} is in use: {url}"
    server = uvicorn.Server(config)
    server_started = server.startup

    async def started(sockets: Any = None) -> None:
        await server_started(sockets)
        print(line, flush=True)
        if browser:
            webbrowser.open(url)

    server.startup = started
    try:
        server.run(sockets=[listening])
        raise KeyboardInterrupt  # it ends by signals alone, and one of them may be ignored
    finally:
        runs.close()


def _refuse(url: str, *args: Any, **kwargs: Any) -> str:
    """Fetch nothing: a request may name a file of another server in the place of an upload."""
    raise SettingError(f"the studio fetches nothing from other servers, and {url!r:.80} was asked for: upload the file")


@final
class Guard:
    """Answers requests for this page alone, in front of an application.

    A page of somebody else could name this machine as its own (DNS rebinding), send requests to it, or ask for files of other
    servers through it.

    Args:
        app: the application.
        host: the address that requests must name; None for any.
    """

    def __init__(self, app: "ASGIApp", host: str | None) -> None:
        self._app = app
        self._names = None if host is None else {host, "localhost", "127.0.0.1", "::1"}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and not self._is_allowed(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"the studio does not answer this request"})
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: "Scope") -> bool:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        asked = [f"//{headers.get(b'host', '')}", *([headers[b"origin"]] if b"origin" in headers else [])]
        own = self._names is None or all(_name_in(url) in self._names for url in asked)
        return own and "file=http" not in scope["path"]


def _name_in(url: str) -> str | None:
    """The name of the host in an address; None if it has none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
