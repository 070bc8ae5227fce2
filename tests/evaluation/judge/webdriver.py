"""A browser used as a person would, through chromedriver and the W3C WebDriver protocol."""

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from tests.conftest import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
KEYS = {
    "Tab": "\ue004",
    "Enter": "\ue007",
    "Left": "\ue012",
    "Right": "\ue014",
    "Shift": "\ue008",
    "Escape": "\ue00c",
}
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions",
]  # fmt: skip


class Browser:
    """One Chromium with an empty profile; what it downloads lies in `downloads`."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, *flags: str) -> None:
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        log = folder / "chromedriver.log"
        self._output = log.open("wb")
        self._driver = subprocess.Popen(
            [CHROMEDRIVER, "--port=0"], stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._session = ""
        try:
            port = wait_for(
                lambda: _port(log.read_text(errors="replace")), 120, "chromedriver does not start"
            )
            self._root = f"http://127.0.0.1:{port}"
            options = {
                "binary": CHROMIUM,
                "args": [
                    *FLAGS,
                    f"--window-size={width},{height}",
                    f"--user-data-dir={folder / 'profile'}",
                    *flags,
                    "about:blank",
                ],
                "prefs": {
                    "download.default_directory": str(self.downloads),
                    "download.prompt_for_download": False,
                },
            }
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
            }
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
            self._ask("POST", "/timeouts", {"pageLoad": 120_000, "script": 120_000})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        try:
            if self._session:
                self._ask("DELETE", "", None)
        finally:
            self._driver.terminate()
            self._driver.wait(60)
            self._output.close()

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def reload(self) -> None:
        self._ask("POST", "/refresh", {})

    def run(self, script: str, *args: object) -> object:
        """Return what `script`, a function body, returns in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(args)})

    def press(self, *keys: str) -> None:
        """Press and release keys one after the other: characters, or names of `KEYS`."""
        actions = []
        for key in keys:
            for one in [KEYS[key]] if key in KEYS else list(key):
                actions += [{"type": "keyDown", "value": one}, {"type": "keyUp", "value": one}]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Show the page as on a screen of this size in CSS pixels; a window cannot be as narrow as a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def devtools(self, command: str, **params: object) -> object:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot", None)))

    def requests(self) -> list[str]:
        """Return the addresses asked for since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return what the page's console said since the last call: errors, refused scripts."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def _ask(self, method: str, path: str, body: object):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._root + (path if path == "/session" else self._session + path),
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=240) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:600]}") from error


def _port(log: str) -> str | None:
    words = log.split("started successfully on port ")
    return words[1].split(".")[0].strip() if len(words) > 1 and "\n" in words[1] else None
