"""Networks and weights as people have them in files: ONNX, folders of Hugging Face's form, checkpoints of trainings."""
