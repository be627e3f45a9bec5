"""The torch half: gradients through a quantized graph, and what can be learned by them.

    operators  what each operator of a prepared file computes, in torch
    fake       grids of integers that let gradients pass (the straight-through estimator)
    net        a graph as a module, and back: the same nodes, other initializers
    tune       weights, biases and steps that bring the answers closer to the float net's

Nothing else of :mod:`edgecv.quantize` imports it, so that quantizing needs no torch.
"""
