"""From a recipe and weights to an ONNX graph. Needs torch and onnx (``edgecv[export]``)."""
