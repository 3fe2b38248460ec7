"""Gives every answer just within the time limit of one."""

import time


def takes_its_time(model, images, targets):
    time.sleep(1.0)
    return images[:, 0]
