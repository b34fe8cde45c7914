"""A headless Chromium for tests of pages: started without a network, driven over a pipe, with the standard library."""

import base64
import fcntl
import functools
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60  # for one answer


@functools.cache
def find_browser() -> str | None:
    """The first Chromium on the path that starts."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            try:
                done = subprocess.run([path, "--no-sandbox", "--version"], capture_output=True, timeout=30)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return path
    return None


def _pipe():
    """Two descriptors of 10 or more: a shell can put them in the place of 3 and 4 in any order."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high


class Browser:
    """One page. `asked` are the addresses that it requested, `errors` what its scripts and its policy complained of."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        there, self.write = _pipe()
        self.read, back = _pipe()
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run"),
            f"--user-data-dir={self.folder.name}",
        ]
        # it reads commands from descriptor 3 and answers on 4
        script = f'exec "$0" "$@" 3<&{there} 4>&{back}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, find_browser(), *flags, "about:blank"],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self.numbers, self.buffer, self.events = itertools.count(1), b"", []
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of one command; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self._next(until)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, until):
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(until - time.monotonic(), 0))[0]:
                raise TimeoutError("the browser did not answer")
            got = os.read(self.read, 1 << 20)
            if not got:
                raise RuntimeError("the browser ended")
            self.buffer += got
        one, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(one)

    def open(self, path, width=1280, height=900, dark=False, touch=False):
        """Load a file and wait until its figures are drawn."""
        self.size(width, height, touch)
        self.theme(dark)
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next(time.monotonic() + SECONDS))
        self.wait("document.documentElement.dataset.drawn === 'yes'")

    def size(self, width, height=900, touch=False):
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )

    def theme(self, dark):
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def value(self, expression):
        """What an expression of JavaScript gives, as JSON; a promise is awaited."""
        how = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **how)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, expression, seconds=SECONDS):
        until = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > until:
                raise TimeoutError(f"not within {seconds} s: {expression}; {self.errors}")
            time.sleep(0.05)

    def move(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, x, y):
        self.call("Input.synthesizeTapGesture", x=x, y=y, gestureSourceType="touch")

    def picture(self, path, whole=True):
        """Save a PNG of the page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    @property
    def asked(self):
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [p["request"]["url"] for p in sent if not p["request"]["url"].startswith("data:")]

    @property
    def errors(self):
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        return [*thrown, *(entry for entry in logged if entry["level"] == "error")]

    def close(self):
        for end in (self.write, self.read):
            os.close(end)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()
