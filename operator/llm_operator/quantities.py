"""Kubernetes quantities such as 500m, 2 or 1.5Gi as exact numbers. None is ever negative here."""

import re
from decimal import Decimal

PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9]{1,2})?$"

_QUANTITY = re.compile(r"([0-9.]+)(\w*)", re.ASCII)
_FACTORS = {
    "": Decimal(1),
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
    found = _QUANTITY.fullmatch(text) if re.match(PATTERN, text) else None
    if found is None:
        msg = f"{quantity!r} is not a quantity"
        raise ValueError(msg)
    number, suffix = found.groups()
    return Decimal(number) * _FACTORS[suffix] if suffix in _FACTORS else Decimal(text)
