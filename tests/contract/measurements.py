"""Candidates with given measurements."""

from regcache_deploy.bench.timing import Interval
from regcache_deploy.contract.decide import Drop, Measured


def measured(form, drop=(0.0, 0.0, 0.0), speed=(1.0, 1.0, 1.0)):
    loss, low, high = drop
    ratio, slowest, fastest = speed
    return Measured(form, Drop(loss, low, high, 100, "top1"), Interval(ratio, slowest, fastest, 9))


GOOD = measured("int8", (0.2, 0.1, 0.3), (2.0, 1.9, 2.1))
WORSE = measured("int8", (0.7, 0.6, 0.8), (2.0, 1.9, 2.1))
SLOW = measured("int8", (0.2, 0.1, 0.3), (1.01, 1.0, 1.02))
UNSURE = measured("int8", (0.3, -0.4, 1.0), (1.1, 0.9, 1.3))
MIXED = measured("mixed", (0.4, 0.3, 0.5), (1.5, 1.4, 1.6))
FLOAT = measured("float")
