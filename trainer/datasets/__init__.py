"""Where pictures come from, one module a dataset; and how batches of them are made."""
