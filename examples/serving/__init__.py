"""What TensorFlow Serving needs to serve the model of `examples.digits`, and a client."""
