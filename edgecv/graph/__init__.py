"""Passes on ONNX graphs that export and quantization share.

Each edit is one file and one function on an onnx-ir model: it says what it matches, changes the
model in place and returns how many places it changed.
"""
