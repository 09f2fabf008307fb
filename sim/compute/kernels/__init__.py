"""Compiled kernels: layers of small models for a block of nodes at once, forward and backward.

Every node of a block has parameters of its own, a row of `params [r, P]`; with one row (r = 1) all
of them share it. Matrix products go to the BLAS that scipy carries, node by node, so what a node
gets does not depend on who is in its block. Arrays are float32 and C-contiguous, `at` is where a
tensor begins in a row, and gradients are written to rows of the same layout.

| module | holds |
| --- | --- |
| `linear` | x W^T + b, with or without ReLU |
| `norm` | layer norm |
| `gelu` | the exact GELU |
| `attention` | causal attention of many small heads |
| `embedding` | token and position tables |
| `convolution` | patches of images, for convolutions as matrix products |
| `cross_entropy` | loss and gradient of logits |
| `steps` | steps of optimizers, one pass over memory |
| `mixing` | weighted sums of rows, some columns at a time |
| `numeric` | exp, the tail of the normal distribution, short copies |
"""
