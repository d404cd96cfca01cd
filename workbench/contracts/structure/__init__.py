"""How a network is read, counted and cut: trace → channel groups → surgery, and its multiply–accumulates."""
