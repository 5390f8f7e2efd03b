"""HiDream-O1."""

from .family import Family, Network, References

FAMILY = Family(
    hosts=("HiDreamO1",),
    references=References(most=10, encoded=False),
    networks={"HiDreamO1Transformer": Network()},
)
