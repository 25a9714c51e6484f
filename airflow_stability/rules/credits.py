"""Sums of credits. Every sum and difference of credits goes through here; the simulator has its own."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal

#: Enough digits for credits. A DAG's code may change the context of its thread.
_CONTEXT = Context(prec=50)


def total(*credits: float) -> float:
    """Return the sum of credits as people write them: 0.1 and 0.2 make 0.3.

    Doubles are binary fractions. Added as such, 0.1 and 0.2 are more than 0.3, and 100.3 less 100 is less
    than 0.3: a gate would stay closed after a top-up that is enough. A single number stays the same double.

    :param credits: the numbers to add; a negative one is subtracted.
    """
    result = Decimal(0)
    for each in credits:
        result = _CONTEXT.add(result, Decimal(repr(float(each))))
    return float(result)


#: The ledger counts in millionths of a credit, as whole numbers: they are exact in every database.
MICRO = 1_000_000

#: The most credits that the ledger counts. A few times as much fits into a whole number of a database.
MOST = 10**12


def to_microcredits(credits: float) -> int:
    """Return credits in millionths. What is finer is rounded up, so that nobody holds less than is spent.

    More than :data:`MOST` are taken for that many.
    """
    exact = _CONTEXT.multiply(Decimal(repr(float(credits))), MICRO)
    whole = int(exact.to_integral_value(ROUND_CEILING, context=_CONTEXT))
    return max(-MOST * MICRO, min(whole, MOST * MICRO))


def from_microcredits(microcredits: int) -> float:
    """Return millionths of a credit in credits."""
    return microcredits / MICRO
