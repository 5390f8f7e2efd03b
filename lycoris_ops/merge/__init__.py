"""Several adapters become one: the changes of a layer are merged by a method, and made into a layer again."""
