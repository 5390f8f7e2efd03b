"""HiDream-O1."""

from .family import Family, Network, References
from .shared import taken_by

FAMILY = Family(
    hosts=("HiDreamO1",),
    references=taken_by(References(most=10, encoded=False)),
    networks={"HiDreamO1Transformer": Network()},
)
