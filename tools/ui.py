"""Serve the host with the demo's models until interrupted: `make ui`."""

import time

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory, free_port

from .demo import DEMO, prepared

# Where ComfyUI itself listens.
PORT = 8188


def main() -> None:
    found = facts()
    prepared()
    base = install(base_directory(DEMO, ROOT))
    port = free_port(PORT)
    print(f"Starting ComfyUI {found.host} ...", flush=True)
    with Server(found.comfyui, base, port=port) as server:
        taken = "" if port == PORT else f" (port {PORT} is taken)"
        print(f"ComfyUI {found.host} is at {server.url}{taken}; its log is {server.log}", flush=True)
        print("Open the address in a browser. Ctrl-C stops it.", flush=True)
        try:
            while server.running():
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        raise SystemExit(f"The host stopped by itself; the end of its log:\n{server.tail()}")


if __name__ == "__main__":
    main()
