"""What a round is, on the server's side: the loop, the ceremony and the aggregation schemes."""
