"""Compute utilisation of overlapped training, as one loop over layers: the oracle of the runs.

A step goes forward through L layers, T / (3 L) each, then back: of activations (not of the first
layer) and of parameters, T / (3 L) each. When a layer's gradient is released its reduction queues
up; reductions go one at a time. The layer's forward pass in step s + 1 + tau waits for that of
step s.
"""

import math


def utilisation(
    parameters, layers, step_seconds, gbit, *, method, inner_steps=1, tau=0, bits=16, rounds=3
):
    piece = step_seconds / (3 * layers)
    reduction = bits * parameters / layers / (gbit * 1e9)
    fragments = math.ceil(layers / 3)
    every = round(inner_steps / fragments)
    now = link_free = 0.0
    gates, turn = {}, 0
    for step in range(rounds * inner_steps):
        sent = ()
        if method == "data_parallel" or (method == "diloco" and (step + 1) % inner_steps == 0):
            sent = range(layers)
        elif method == "streaming" and (step + 1) % every == 0:
            sent = range(turn % fragments, layers, fragments)
            turn += 1
        for layer in range(layers):
            now = max(now, gates.pop((step, layer), 0.0)) + piece
        for layer in reversed(range(layers)):
            now += piece if layer == 0 else 2 * piece
            if layer in sent:
                link_free = max(link_free, now) + reduction
                gates[step + 1 + tau, layer] = link_free
    computing = rounds * inner_steps * (3 * layers - 1) * piece
    return computing / max(now, link_free)
