"""The coordinator of a deployment: its folder, its SuperLink, its door for people, and the service that holds them."""
