"""A process that ends while a daemon thread calls a plan; it imports no framework, so that many start at once."""

import array
import threading
import time

import nsa_kernel


def ints(*values):
    return array.array("i", values)


plan = nsa_kernel.DraftExtendPlan(ints(2, 3), ints(10, 15), 12, ints(*[0] * 5), ints(*[0] * 5))


def run_for_ever():
    while True:
        plan.run()


threading.Thread(target=run_for_ever, daemon=True).start()
time.sleep(0.05)
