"""Turn a folder of pictures and clips into training data: each is found, sized, encoded once and kept.

`folder.py` finds them with their captions, masks and references, `texts.py`, `picture.py` and `clip.py` read
them, `sizes.py` says in which size each is trained, `kept.py` keeps what was encoded, and `prepare.py` puts
these together.
"""
