"""The full rate to the end."""


def factor(done: float) -> float:
    return 1.0
