"""What `fedseal serve` is made of: the door, accounts, models, keys, receipts, and the process that holds them."""
