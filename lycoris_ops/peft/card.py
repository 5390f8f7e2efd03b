"""The model card of a PEFT folder: what a visitor of a model hub reads first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from ..algorithms import Layer
from ..algorithms.checks import of_rank
from ..messages import number_of

TEXT = """\
---
{header}
---

# Adapter for PEFT

{held}.

With PEFT, `model` being the base model:

```python
from peft import PeftModel
model = PeftModel.from_pretrained(model, "path of this folder")
```

With lycoris_ops, for any torch module:

```python
import lycoris_ops as lyc
network = lyc.create_lycoris(model, weights="path of this folder").apply_to()
```
"""


def card_of(layers: Sequence[Layer], configuration: str) -> str:
    """The card of layers that are written with this PEFT configuration.

    Its header is YAML: PEFT as the library, the kind as a tag, and the base model if the configuration names
    one. Its text has the kinds, ranks and numbers of layers, and how to load them.
    """
    table = json.loads(configuration)
    tags, lines = [quoted(table["peft_type"].lower())], ["library_name: peft"]
    if base := table.get("base_model_name_or_path"):
        lines.insert(0, f"base_model: {quoted(base)}")
        tags.insert(0, quoted(f"base_model:adapter:{base}"))
    kinds = Counter(of_rank(layer.algorithm, layer.rank) for layer in layers)
    held = ", ".join(f"{number_of(count, 'layer')} of {kind}" for kind, count in kinds.most_common())
    return TEXT.format(header="\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags)]), held=held)


def quoted(text: str) -> str:
    """A text as a scalar of YAML in quotes. What a reader would refuse or take for a sign is escaped."""
    escaped = (sign if sign.isprintable() and sign not in '"\\' else f"\\U{ord(sign):08x}" for sign in text)
    return f'"{"".join(escaped)}"'
