"""Kandinsky 5."""

from .family import Family, Network
from .node import FIRST, Node

FAMILY = Family(
    hosts=("Kandinsky5",),
    frame_rate=24,
    given=Node({FIRST: "Kandinsky5ImageToVideo"}),
    networks={"Kandinsky5": Network()},
    variants={"Kandinsky5Image": {"frame_rate": None, "given": None}},
)
