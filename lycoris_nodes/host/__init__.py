"""The one door to the host, ComfyUI: only this folder imports it."""
