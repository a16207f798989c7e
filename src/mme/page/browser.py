"""Opening an address in the user's browser."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import webbrowser


def show(url: str) -> bool:
    """Opens the address in a browser with a window of its own; does not wait for it. False: there is none.

    A browser that draws in the terminal does not count: it would take the terminal away from the server. ``BROWSER``
    names another one, as webbrowser has it.
    """
    windows = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if not windows and not os.environ.get("BROWSER"):
        return False
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    threading.Thread(target=_open, args=(browser, url), name="browser", daemon=True).start()
    return True


def _open(browser: webbrowser.BaseBrowser, url: str) -> None:
    try:
        browser.open(url)
    except (webbrowser.Error, OSError, subprocess.SubprocessError):
        return  # the address was printed
