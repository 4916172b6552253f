"""How hosts prepare pictures: files of view rules and readers, which register themselves."""
