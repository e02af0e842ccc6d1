"""What sequences remember: pages of keys and values, slots of recurrent state."""
