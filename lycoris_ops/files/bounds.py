"""Bounds on what a file may hold, far above any real file. A file beyond them is refused.

Files may come from strangers. A file is checked against these bounds when it is opened, before its content is
used. Opening a malicious file therefore takes at most 2 s and 1 GB of memory.
"""

from __future__ import annotations

MAX_TENSORS = 1 << 17
"""Tensors of one file: 131,072. An adapter for the experts of a large language model has about 100,000, a
checkpoint of a diffusion model a few thousand."""

MAX_JSON = 32 << 20
"""Bytes of a JSON document, such as the header of a safetensors file. An entry of the header takes about 150
bytes, and training tools' records of their data sets take several MB. The format allows 100 MB."""

MAX_BRACKETS = 8 * MAX_TENSORS
"""Opening brackets and braces in a JSON document. A tensor's entry in a header has three. Each mark becomes a
list or a table, which takes 20 times the memory of its characters and much of the parsing time."""

MAX_QUOTES = 12 * MAX_TENSORS
"""Quotation marks in a JSON document that delimit strings. A tensor's entry in a header has ten. Each pair
becomes a string; a short one takes about 10 times its size in the file."""

MAX_COMMAS = 24 * MAX_TENSORS
"""Commas in a JSON document, also inside its strings. A tensor's entry in a header has about six. Each comma
precedes a value, which takes 40 bytes or less unless it is a table, a list or a string."""

MAX_METADATA = 10_000
"""Entries of the metadata. Training tools write about 100."""

MAX_KEY = 1000
"""Characters of a tensor's name. The longest names in real files have about 200."""

MAX_DOTS = 64
"""Dots in a tensor's name, which separate the modules of its path. Real names have up to about 20."""

MAX_DIMENSIONS = 16
"""Dimensions of a tensor. A kernel of a 3D convolution has five, and no layer of a model more than eight."""

MAX_ELEMENTS = 1 << 40
"""Elements of a tensor, where dimensions of 0 count as 1. A tensor is no larger than its data, except if
a dimension is 0. Then torch fails if the product of the other dimensions does not fit into 63 bits."""

MAX_PICKLE = 8 << 20
"""Bytes of the pickle that describes a file's tensors, without their data. A tensor takes about 200."""

MAX_STEPS = 1_000_000
"""Instructions of that pickle. A tensor takes about 30. Each instruction may make an object of about 60
bytes."""

MAX_MADE = 16 * MAX_STEPS
"""Values in that pickle's tables, lists and calls. A value counts once for each container that holds it."""

MAX_NESTED = 100
"""The nesting depth of that pickle's values."""

MAX_MEMBERS = MAX_TENSORS + 100
"""Members of the zip archive of a .pt or .bin file: a storage for each tensor, and a few more."""

MAX_SHARING = 16
"""The total size of a pickle's tensors, as a multiple of its file's size. Tied tensors and views of a larger
tensor are stored once, but each is read into its own memory."""
