"""Post-training quantization of ONNX graphs: one algorithm per file, each with its source.

The path of a file through this package::

    prepare    check it, fold what folds, recognise what it is made of
    calibrate  run pictures through it; choose a range per tensor by measured error
    place      put QuantizeLinear and DequantizeLinear where the target's runtime fuses them
    correct    give each channel back the mean that quantization took from it
    sensitivity  the error that each layer brings; which to put back to float
    gradients  learn scales, biases and weights (torch; nothing else here imports it)

Everything works on an onnx-ir model and a callable that yields batches; pictures, contracts and
proof belong to :mod:`edgecv.workflows.quantize`.
"""
