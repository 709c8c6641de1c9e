"""Protobuf messages of fedseal's own services; `*_pb2.py` are generated from the `.proto` files beside them."""
