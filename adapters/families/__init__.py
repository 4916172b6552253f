"""Tower families: one file a family, which registers itself (``registry``); nothing lists them."""
