"""Protocols, cryptography, learning and trust: pure code that knows neither Flower, gRPC nor MLflow."""
