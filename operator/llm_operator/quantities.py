"""Kubernetes quantities such as 500m, 2 or 1.5Gi, as exact numbers."""

from decimal import Decimal, InvalidOperation

_SUFFIXES = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def parse(quantity: int | str) -> Decimal:
    """The number that `quantity` stands for, in base units (cores, bytes, pieces).

    Raises:
        ValueError: it is not a quantity.
    """
    text = str(quantity)
    for length in (2, 1):
        factor = _SUFFIXES.get(text[-length:])
        if factor is not None:
            text = text[:-length]
            break
    else:
        factor = Decimal(1)
    try:
        return Decimal(text) * factor
    except InvalidOperation:
        msg = f"{quantity!r} is not a quantity"
        raise ValueError(msg) from None
