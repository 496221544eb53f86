"""Models: what they are, where they come from, and how pictures go in and answers come out.

- `catalogue`: cards of models, and reading their answers
- `letterbox`: a picture into a model's input, boxes back out
- `served`: a detector as the one graph that ONNX Runtime, Triton and TensorRT run
- `importing`, `batching`: a model that a user brings
- `releases`, `fetching`: published models that are fetched and verified
- `forms`, `graph`: the forms of detectors that we know, and writing ONNX
- `coco`: the classes of COCO
- `runtime`: ONNX Runtime in this process
- `cli`: `cloud-inference models`, also `python -m eyeline_models`
- `errors`: what can be wrong with a model
"""
