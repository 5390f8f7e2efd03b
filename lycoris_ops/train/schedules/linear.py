"""1 - x, for the share x of the steps that is done."""


def factor(done: float) -> float:
    return 1 - done
