"""ACE-Step."""

from .family import Family, Network
from .times import Times

FAMILY = Family(
    hosts=("ACEStep",),
    name="ACE-Step",
    source="SimpleTuner",
    times=Times("logit-normal", shift=3.0),
    networks={"ACEStepTransformer2DModel": Network(), "AceStepConditionGenerationModel": Network()},
    variants={"ACEStep15": {"name": "ACE-Step 1.5", "times": Times("logit-normal", -0.4)}},
)
