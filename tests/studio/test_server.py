"""The server: whom it answers, where it listens, what it serves, and what is left of it."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from panokit.cli import main
from panokit.errors import SettingError
from panokit.recipe import embedded
from panokit.studio.server import check_host, is_loopback, listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.studio.conftest import Served

pytestmark = pytest.mark.xdist_group("studio")


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.3", False),
        ("localhost.evil.org", False),
        ("", False),
    ],
)
def test_hosts_that_other_machines_reach_are_known(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


@pytest.mark.parametrize("options", [["--host", "0.0.0.0"], ["--host=::"]])
def test_a_studio_without_a_password_is_for_this_machine_alone(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", "--no_open", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("panokit: other machines reach the host ")
    assert error.count("\n") == 1


def test_an_empty_password_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", "--no-open", "--host", "0.0.0.0", "--password", ""]) == 2
    assert capsys.readouterr().err.startswith("panokit: password came empty")


def test_with_a_password_any_host_may_be_listened_at() -> None:
    check_host("0.0.0.0", "secret")


def test_the_next_free_port_is_taken() -> None:
    with listen("127.0.0.1", 17860) as first:
        number = first.getsockname()[1]
        with listen("127.0.0.1", number) as second:
            assert number < second.getsockname()[1] <= number + 100


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("127.0.0.1", 0, "port is 0: it must be from 1 to 65535"),
        ("127.0.0.1", 70_000, "port is 70000"),
        ("192.0.2.1", 7860, "no port from 7860 to 7959 of 192.0.2.1 can be listened at"),
        ("no such host", 7860, "there is no host 'no such host' to listen at"),
    ],
)
def test_a_place_that_cannot_be_listened_at_is_named(host: str, port: int, line: str) -> None:
    with pytest.raises(SettingError) as error:
        listen(host, port)
    assert str(error.value).startswith(line)


def test_without_gradio_the_line_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panokit.cli.commands.find_spec", lambda name: None)
    assert main(["studio"]) == 2
    assert capsys.readouterr().err == (
        'panokit: panokit studio needs gradio, which is not installed: pip install "panokit[studio]"\n'
    )


@pytest.fixture(scope="module")
def locked(serve: Callable[..., AbstractContextManager[Served]], studio: Served, free_port: int) -> Iterator[Served]:
    """A studio with a password, which asks for the port of the other one."""
    with serve("--port", str(free_port), "--password", "secret") as served:
        yield served


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_says_where_it_is_when_the_port_is_in_use(locked: Served, free_port: int) -> None:
    assert locked.line.startswith(f"port {free_port} is in use: http://127.0.0.1:")
    assert int(locked.url.rpartition(":")[2]) > free_port


@pytest.mark.parametrize("path", ["config", "gradio_api/file=/etc/passwd", "gradio_api/info"])
def test_nothing_is_told_without_the_password(locked: Served, path: str) -> None:
    assert status(f"{locked.url}/{path}") == 401


def test_the_password_opens_the_page(locked: Served) -> None:
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with pytest.raises(urllib.error.HTTPError, match="400"):
        opener.open(f"{locked.url}/login", data=b"username=panokit&password=wrong")
    opener.open(f"{locked.url}/login", data=b"username=panokit&password=secret")
    page = json.load(opener.open(f"{locked.url}/config"))
    assert page["title"] == "panokit studio"
    assert not page.get("analytics_enabled")


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "../../../etc/passwd", "http://127.0.0.1:1/a.png"])
def test_no_file_of_the_machine_and_no_other_server_is_served(studio: Served, path: str) -> None:
    assert status(f"{studio.url}/gradio_api/file={path}") == 403


def test_files_of_the_folder_that_it_was_started_in_are_not_served(studio: Served) -> None:
    assert status(f"{studio.url}/gradio_api/file={Path('pyproject.toml').resolve()}") == 403


def uploaded(url: str, path: Path) -> str:
    """Upload a file; the name that the studio gives it."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = head + path.read_bytes() + b"\r\n--x--\r\n"
    request = urllib.request.Request(f"{url}/gradio_api/upload", body, {"content-type": "multipart/form-data; boundary=x"})
    (name,) = json.load(urllib.request.urlopen(request))
    return name


def asked(url: str, button: str, file: str) -> bool:
    """Send an upload button a file that nobody uploaded; whether the studio took it."""
    page = json.load(urllib.request.urlopen(f"{url}/config"))
    ids = {part["props"].get("elem_id"): part["id"] for part in page["components"]}
    (event,) = [event["id"] for event in page["dependencies"] if event["inputs"] == [ids[button]]]
    session = secrets.token_hex(8)
    data = [{"path": file, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}]
    body = json.dumps({"data": data, "fn_index": event, "session_hash": session, "trigger_id": ids[button]}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/queue/join", body, {"content-type": "application/json"})
    urllib.request.urlopen(request)
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash={session}", timeout=30) as answers:
        for line in answers:
            if b"process_completed" in line:
                return json.loads(line.removeprefix(b"data: "))["success"]
    raise AssertionError("no answer")


@pytest.mark.parametrize("button", ["choose", "open"])
def test_a_request_cannot_name_a_file_of_the_machine_in_the_place_of_an_upload(
    studio: Served, tmp_path: Path, button: str
) -> None:
    recipe = {"prompt": "a", "height": 128, "width": 256, "seed": 1, "model": "landscapes"}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", **embedded(recipe, "PNG"))
    assert not asked(studio.url, button, str(tmp_path / "a.png"))
    assert asked(studio.url, button, uploaded(studio.url, tmp_path / "a.png"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "https://example.org/a.png"])
def test_a_request_cannot_name_a_file_of_another_server(studio: Served, url: str) -> None:
    assert not asked(studio.url, "choose", url)


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"Host": "evil.example:7860"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1:7860"}, 200),
    ],
)
def test_requests_of_other_sites_are_not_answered(studio: Served, headers: dict[str, str], answer: int) -> None:
    assert status(studio.url, **headers) == answer


def test_ctrl_c_ends_it_without_a_trace(locked: Served, temporary: Path) -> None:
    before = {*temporary.iterdir()}
    assert locked.interrupt() == (130, "panokit: interrupted\n")
    assert len(before - {*temporary.iterdir()}) == 1  # its folder is gone
