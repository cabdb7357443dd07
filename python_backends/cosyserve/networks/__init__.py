"""Networks in torch, which are exported and which the torch runtime runs; no other runtime needs them."""
