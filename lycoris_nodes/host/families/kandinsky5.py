"""Kandinsky 5."""

from .family import Family, Network
from .node import FIRST, Node
from .shared import given_by, nothing_given

FAMILY = Family(
    hosts=("Kandinsky5",),
    frame_rate=24,
    given=given_by(Node({FIRST: "Kandinsky5ImageToVideo"})),
    networks={"Kandinsky5": Network()},
    variants={"Kandinsky5Image": {"frame_rate": None, "given": nothing_given}},
)
