"""From recordings to aligned clips of two seconds, and the store that holds them."""
