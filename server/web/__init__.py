"""Local web pages, read only, that programs of this package show to whoever runs them."""
