"""The standalone form of the lycoris-lora package, used by SimpleTuner too."""

from .base import Dialect, Prefix

DIALECT = Dialect(name="lycoris", prefixes=(Prefix("lycoris_"),))
