"""Serve the host with the demo's models until interrupted: `make ui`."""

import time

from .assets import install
from .facts import ROOT, facts
from .launch import Server, base_directory


def main() -> None:
    found = facts()
    base = install(base_directory(ROOT / ".cache" / "demo", ROOT))
    with Server(found.comfyui, base) as server:
        print(f"ComfyUI {found.host}: {server.url} (log: {server.log}); Ctrl-C stops it", flush=True)
        try:
            while server.running():
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        raise SystemExit(f"The host stopped by itself; the end of its log:\n{server.tail()}")


if __name__ == "__main__":
    main()
