"""The edge where bytes become values and back: message models, the codec, the task document, the AsyncAPI text."""
