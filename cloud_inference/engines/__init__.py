"""Engines: a served ONNX graph made fast for one kind of GPU, and put into use while Triton serves.

- `typed`: the graph with its precision in it: float16 by conversion, int8 by calibration from pictures
- `accuracy`: what a precision costs, measured on pictures that it has not seen
- `tensorrt`: the seam to the builders: TensorRT 10, TensorRT 11 and TensorRT for RTX
- `build`: from a model of the catalogue to a plan with its report
- `cache`: where plans are kept for every node that is alike, in S3-compatible storage or a folder
- `repository`: Triton's repository with one form of a model, and going over to another with no request failed
- `manager`: what runs beside Triton: the ONNX form at once, the plan as soon as it is there
- `cli`: `cloud-inference engines`
"""
