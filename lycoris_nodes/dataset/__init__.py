"""A folder of pictures as data to train on: what is in it, in which sizes, encoded once and kept on disk.

`folder.py` finds pictures with their captions and masks, `texts.py` and `picture.py` read them, `sizes.py`
says in which size each is trained, `kept.py` keeps what was encoded, and `prepare.py` puts these together.
"""
