"""A folder of pictures and clips as data to train on: what is in it, in which sizes, encoded once and kept.

`folder.py` finds them with their captions, masks and references, `texts.py`, `picture.py` and `clip.py` read
them, `sizes.py` says in which size each is trained, `kept.py` keeps what was encoded, and `prepare.py` puts
these together.
"""
