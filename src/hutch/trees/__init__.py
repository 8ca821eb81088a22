"""Work in trees that others can write: the one place for it. See `cursor` for how it is done."""
