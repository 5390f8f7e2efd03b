"""Chroma."""

from .family import Family, Network

# Its class passes references on, but its network ignores them.
FAMILY = Family(
    hosts=("Chroma",),
    name="Chroma",
    source="ai-toolkit, kohya-ss/sd-scripts; the rate: SimpleTuner",
    guidance=0.0,
    rank=32,
    lr=2e-4,
    include=("final_layer.linear",),
    networks={"Chroma": Network(norms="Chroma"), "ChromaRadiance": Network(norms="ChromaRadiance")},
    variants={
        "ChromaRadiance": {"name": "Chroma Radiance", "source": "ai-toolkit", "lr": 1e-4, "include": ()}
    },
)
