"""How the learning rate goes over a training; recipe.py says where the schedules come from."""

SCHEDULES = ("one_cycle", "piecewise", "constant")


def rate_at(schedule, peak, warm_up, progress):
    """The learning rate when `progress`, 0 to 1, of the training is done."""
    if schedule == "constant":
        return peak
    if schedule == "piecewise":
        return peak / (1 if progress < 0.5 else 10 if progress < 0.75 else 100)
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * (1 - progress) / (1 - warm_up)
