"""Models: what they are, where they come from, and how pictures go in and answers come out.

- `catalogue`: cards of models, and reading their answers
- `letterbox`: a picture into a model's input, boxes back out
- `served`: a detector as the one graph that ONNX Runtime, Triton and TensorRT run
- `importing`: a model that a user brings
- `runtime`: ONNX Runtime in this process
- `errors`: what can be wrong with a model
"""
