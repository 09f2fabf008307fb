"""Token and position tables of a block of nodes.

Legend: r rows of parameters (c, or 1 if shared), c nodes (or runs), S sequences of each,
T positions, V vocabulary, W width.
"""

from __future__ import annotations

from sim.compiled import compiled

_kernel = compiled(__file__)


@_kernel
def embed(params, token_at, position_at, vocabulary, tokens, x):
    """x [c, S T, W]: a row of the token table plus one of the positions, for tokens [c, S, T].

    Raises:
        IndexError: if a token is not in [0, vocabulary).
    """
    c, S, T = tokens.shape
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise IndexError("a token is not in the vocabulary")
    W = x.shape[2]
    for i in range(c):
        row = params[i if len(params) > 1 else 0]
        for m in range(S * T):
            token = row[token_at + W * tokens[i, m // T, m % T] :]
            position = row[position_at + W * (m % T) :]
            out = x[i, m]
            for w in range(W):
                out[w] = token[w] + position[w]


@_kernel
def embed_backward(token_at, position_at, context, tokens, dx, grads):
    """Add to the gradients of the token table, in the order of tokens; write those of positions.

    Args:
        context: rows of the position table; those from T on have no gradient.
        tokens: int64 [c, S, T].
        dx: float32 [c, S T, W].
        grads: float32 [c, P].
    """
    c, S, T = tokens.shape
    W = dx.shape[2]
    for i in range(c):
        grads[i, position_at : position_at + W * context] = 0
        for m in range(S * T):
            token = grads[i, token_at + W * tokens[i, m // T, m % T] :]
            position = grads[i, position_at + W * (m % T) :]
            d = dx[i, m]
            for w in range(W):
                token[w] += d[w]
                position[w] += d[w]
