"""How hosts prepare pictures: view rules, and the processors that use them."""
