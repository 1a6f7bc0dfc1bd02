"""How strong a penalty must be to keep a given fraction of the weights."""

import math

TOLERANCE = 0.05  # of what is kept


def near(kept, target):
    """Returns whether a kept fraction is the one asked for, within `TOLERANCE`."""
    return abs(kept / target - 1) <= TOLERANCE


def propose(points, target, first, slope):
    """Returns the strength to try next, or `None` where going on would lead away: a net that is pulled
    too hard falls apart and keeps more again.

    The logarithm of the fraction kept is taken to be linear in the logarithm of the strength: between the
    points nearest above and below, or beyond all of them.

    Args:
        points: List of tuples of a strength and the fraction kept with it.
        target: Float, the fraction to keep.
        first: Float, the strength to begin with.
        slope: Float, how the two go together if there is only one point: +1 or −1.
    """
    if not points:
        return first
    logs = sorted((math.log(max(kept, 1e-6) / target), math.log(strength)) for strength, kept in points)
    nearest = min(logs, key=lambda log: abs(log[0]))
    if near(target * math.exp(nearest[0]), target):
        return math.exp(nearest[1])
    above, below = [log for log in logs if log[0] > 0], [log for log in logs if log[0] < 0]
    if above and below:
        (y1, x1), (y2, x2) = above[0], below[-1]
        between = x1 - y1 * (x2 - x1) / (y2 - y1)
        # Tried already, and it is neither of the two: what is kept does not follow the strength here.
        return None if any(math.isclose(x, between) for _, x in logs) else math.exp(between)
    ahead = math.copysign(1, -nearest[0] / slope)
    if any(ahead * (log[1] - nearest[1]) > 0 for log in logs):
        return None
    others = [log for log in logs if log[0] != nearest[0] and log[1] != nearest[1]]
    if others:
        other = min(others, key=lambda log: abs(log[0]))
        measured = (other[0] - nearest[0]) / (other[1] - nearest[1])
        # Runs also differ by chance: the slope is measured, but its sign is known.
        slope = math.copysign(min(max(abs(measured), 0.2), 5), slope)
    step = -nearest[0] / slope
    return math.exp(nearest[1] + math.copysign(min(max(abs(step), 0.05), math.log(10)), step))
