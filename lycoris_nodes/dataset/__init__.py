"""Turn a folder of pictures and clips into training data, in four steps with a value between each.

`folder.py` finds them with their captions, masks and references (`Found`), `plan.py` says in which sizes,
cuts and texts each is learned (`Planned`), `encode.py` encodes that once (`Encoded`, kept by its `CacheKey`
in `kept.py`), and `report.py` says it in words. `prepare.py` puts these together. `texts.py`, `lists.py`,
`picture.py` and `clip.py` read files, and `sizes.py` has the sizes.
"""
